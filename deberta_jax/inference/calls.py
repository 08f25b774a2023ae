"""Defines what all pipelines share: their arguments, and one input, a list, or a stream of inputs in a call."""

import abc
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from deberta_jax.data.features import Features, LongTexts, check_vocabulary, make_features
from deberta_jax.errors import InputError, did_you_mean, shown
from deberta_jax.inference.loaded import Loaded
from deberta_jax.text.arguments import strategy

# Longer than any text.
UNLIMITED = 1 << 30

# What to give instead of arguments that other versions of transformers have, or that have no meaning here.
_INSTEAD = {
    "device_map": "models are on all devices by default",
    "framework": "there is one framework, JAX; leave it out",
    "grouped_entities": "give aggregation_strategy='simple'",
    "num_workers": "tokenizing uses all cores by itself; leave it out",
    "return_all_scores": "give top_k=None",
    "topk": "give top_k",
    "torch_dtype": "give dtype",
    "trust_remote_code": "no code of a model is ever run; leave it out",
    "use_fast": "there is one tokenizer; leave it out",
}


@dataclasses.dataclass(frozen=True)
class Items:
    """Holds inputs of a call that are answered together.

    Attributes:
      values: the inputs.
      first: the number of the first in the call; None for a call with a single input.
    """

    values: list[Any]
    first: int | None = 0

    def where(self, i: int) -> str:
        """Returns the name of an input for messages."""
        return "the input" if self.first is None else f"inputs[{self.first + i}]"


def check_names(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Checks the names of arguments.

    Raises:
      InputError: ``what`` has no argument of such a name.
    """
    known = sorted(known)
    for name in given:
        if name not in known:
            advice = f"; {_INSTEAD[name]}" if name in _INSTEAD else did_you_mean(name, known)
            raise InputError(f"{name}: is no argument of {what}; there are {', '.join(known)}{advice}")


def check_container(inputs: Any, what: str = "the input") -> None:
    """Raises InputError for inputs that can be iterated over but have no texts, or none in an order."""
    if isinstance(inputs, bytes | bytearray | memoryview):
        raise InputError(f"{what} is {type(inputs).__name__}; give a str, such as data.decode()")
    if isinstance(inputs, set | frozenset):
        raise InputError(f"{what} is a {type(inputs).__name__}, which has no order; give a list")
    if getattr(inputs, "ndim", 1) == 0:
        raise InputError(f"{what} is an array without an axis; give a str, or a list of them")


def is_stream(inputs: Any) -> bool:
    """Tells whether inputs are a generator, a data set or another iterable, neither a list nor one input."""
    if isinstance(inputs, (str, bytes, list, tuple, Mapping)) or getattr(inputs, "ndim", 1) != 1:
        return False
    return isinstance(inputs, Iterable) or (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"))


def _elements(inputs: Any) -> Iterator[Any]:
    return iter(inputs) if isinstance(inputs, Iterable) else (inputs[i] for i in range(len(inputs)))


@dataclasses.dataclass(frozen=True, repr=False)
class Pipeline(Loaded):
    """Answers inputs with a trained model, with the arguments and results of transformers' pipelines.

    One input gives an answer, a list of inputs a list of answers. A generator, a data set or another iterable gives an
    iterator, which reads a batch at a time. Threads may share a pipeline; a pickle holds the parameters and is loaded
    for all devices of the process that loads it.

    Attributes:
      settings: the arguments of calls that were given to ``pipeline``; those of a call replace them.
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arguments: ClassVar[frozenset[str]] = frozenset()
    """Names of the arguments of a call."""
    task: ClassVar[str]
    pairs: ClassVar[bool] = False
    """A tuple is one input; otherwise it is a list of inputs."""

    def warm_up(self, *, lengths: Sequence[int] | None = None, texts: Sequence[int] | None = None) -> int:
        """Compiles the programs that calls will need, so that no call waits for the compiler.

        A program computes one number of texts of one padded length, of which there are few: 1, 4, 16, ... up to
        ``batch_size`` texts. Each takes as long to compile as its first call; the compilation cache keeps it for later
        processes.

        Args:
          lengths: tokens of the texts to expect; None: all up to ``max_length``.
          texts: largest numbers of texts of the calls to expect; None: one, and so many that they fill a batch.

        Returns:
          The number of programs.

        Raises:
          InputError: a length or a number of texts is below 1.
        """
        return self.predictor.warm_up(self.params, lengths=lengths, texts=texts)

    @abc.abstractmethod
    def _answer(self, items: Items, options: Mapping[str, Any]) -> list[Any]:
        """Returns the answers to one or more inputs, given the arguments of the call."""

    def _call(self, inputs: Any, given: Mapping[str, Any]) -> Any:
        """Returns the answers to the inputs of a call: one, a list, or an iterator."""
        options = self._options(given)
        check_container(inputs)
        if is_stream(inputs):
            return self._stream(_elements(inputs), options)
        if isinstance(inputs, list) or (isinstance(inputs, tuple) and not self.pairs):
            return self._answer(Items(list(inputs)), options) if inputs else []
        return self._answer(Items([inputs], None), options)[0]

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the arguments of a call and those given to ``pipeline``, checked."""
        check_names(given, self.arguments, self.task)
        options = {**self.settings, **given}
        for name in ("batch_size", "top_k", "max_length"):
            if options.get(name) is not None:
                check_count(name, options[name])
        self._check(options)
        return options

    def check_settings(self) -> None:
        """Raises InputError if an argument that was given to ``pipeline`` has a value that it cannot have."""
        self._options({})

    def _check(self, options: Mapping[str, Any]) -> None:
        """Raises InputError for an argument with a value that it cannot have. By default checks nothing."""

    def _stream(self, inputs: Iterator[Any], options: Mapping[str, Any]) -> Iterator[Any]:
        first, size = 0, options.get("batch_size") or self.predictor.rows
        while values := list(itertools.islice(inputs, size)):
            yield from self._answer(Items(values, first), options)
            first += len(values)

    def _limit(self, options: Mapping[str, Any]) -> int:
        """Returns the largest number of tokens of a text."""
        if options.get("truncation") in (False, "do_not_truncate"):
            return UNLIMITED
        return options.get("max_length") or self.predictor.max_length

    def _features(
        self, texts: Sequence[str], pairs: Sequence[str] | None, options: Mapping[str, Any], cut: str = "longest_first"
    ) -> Features:
        """Returns the tokens of texts or pairs. ``cut`` is the text that is truncated unless the options name another.

        Raises:
          InputError: a token id is outside the model's vocabulary.
        """
        limit, given = self._limit(options), options.get("truncation")
        truncation: Any = cut if given in (None, True) or limit == UNLIMITED else given
        features = make_features(self.tokenizer, texts, pairs, max_length=limit, truncation=truncation)
        return self._checked(features, limit)

    def _checked(self, features: Features, limit: int, how: str = "cut") -> Features:
        check_vocabulary(features, self.model.config.vocab_size, "the input")
        LongTexts(features).log("the input", limit, how)
        return features

    def _logits(self, features: Features, options: Mapping[str, Any]) -> np.ndarray:
        """Returns the model's scores for each text [n, K], or each token [N, K]."""
        size = options.get("batch_size")
        predictor = self.predictor if size is None else self.predictor.resized(size)
        return predictor.logits(self.params, features)

    def _check_finite(self, broken: np.ndarray | np.bool, items: Items) -> list[int]:
        """Returns the inputs whose scores are not finite.

        Args:
          broken: bool [n], which inputs these are.
          items: the inputs.

        Raises:
          InputError: there are some, and ``non_finite`` is ``refuse``.
        """
        found = np.flatnonzero(broken).tolist()
        if found and self.non_finite == "refuse":
            raise InputError(
                f"{items.where(found[0])}: the model's scores are NaN or infinite, as for {len(found)} of "
                f"{len(items.values)} inputs; check the model's weights with `deberta-jax inspect`"
            )
        return found


def blank(answer: Any) -> Any:
    """Returns the answer to an input whose scores are not finite: None, or a dict with None for each value."""
    return dict.fromkeys(answer) if isinstance(answer, dict) else None


def with_tokenizing(options: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the arguments of a call with those for the tokenizer, which the argument ``name`` holds as a dict.

    Raises:
      InputError: it is no dict, has another argument or one that the call has too, or a value that cannot be.
    """
    tokenizing = options.pop(name, None) or {}
    if not isinstance(tokenizing, dict):
        raise InputError(f"{name}={shown(tokenizing)}: give a dict")
    check_names(tokenizing, ("truncation", "padding", "max_length"), name)
    for twice in tokenizing.keys() & options.keys():
        raise InputError(f"{twice}: is given twice, as an argument and in {name}")
    options = options | tokenizing
    check_tokenizing(options)
    return options


def check_tokenizing(options: Mapping[str, Any]) -> None:
    """Raises InputError for a value that the tokenizer's arguments cannot have."""
    for name in ("truncation", "padding"):
        if options.get(name) is not None:
            strategy(name, options[name])
    if options.get("max_length") is not None:
        check_count("max_length", options["max_length"])


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Returns an argument that is a number. Raises InputError if it is none, or is below ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{name}={shown(value)}: give a whole number, {least} or more")
    return int(value)


def lowered(value: Any) -> Any:
    """Returns a name in lower case, as transformers reads it; anything else as it is."""
    return value.lower() if isinstance(value, str) else value


def read_text(item: Any, where: str) -> str:
    """Returns an input that is a text. Raises InputError, which names the input, if it is none."""
    if not isinstance(item, str):
        raise InputError(f"{where}: cannot read {shown(item)}; give a str")
    return item
