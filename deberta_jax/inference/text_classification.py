"""Defines the pipeline ``text-classification``: the labels of texts or pairs, as transformers' pipeline gives them."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, TypedDict, Unpack, get_args, overload

import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.data.features import make_features
from deberta_jax.data.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from deberta_jax.errors import InputError, check_choice
from deberta_jax.inference.answers import TextAnswer, TextInput
from deberta_jax.inference.calls import Items, Pipeline, blank, check_tokenizing, lowered
from deberta_jax.inference.long_texts import (
    ALL_TOKENS,
    HOW_READ,
    LongText,
    WindowScore,
    joined_logits,
    split_long,
)
from deberta_jax.tasks.activations import sigmoid
from deberta_jax.tasks.text_classification import probabilities, read_text_or_pair

FunctionToApply = Literal["default", "sigmoid", "softmax", "none"]


class TextOptions(TypedDict, total=False):
    """Holds the arguments of a call of ``TextClassifier``, except ``top_k``, which decides the form of the answer."""

    function_to_apply: FunctionToApply | None
    truncation: Any
    padding: Any
    max_length: int | None
    long_text: LongText
    window_score: WindowScore
    batch_size: int


class TextOptionsOfPipeline(TextOptions, total=False):
    """Holds all arguments of a call of ``TextClassifier``."""

    top_k: int | None


@dataclasses.dataclass(frozen=True, repr=False)
class TextClassifier(Pipeline):
    """Classifies texts, or pairs of texts. An input is a text, ``{"text": ..., "text_pair": ...}``, or a tuple of two.

    As in transformers, a text gives a list with one answer ``{"label", "score"}``, another single input an answer, a
    list of inputs a list of answers. With ``top_k`` each input has a list of answers, the largest score first.
    """

    task: ClassVar[str] = "text-classification"
    pairs: ClassVar[bool] = True
    arguments: ClassVar[frozenset[str]] = frozenset(TextOptionsOfPipeline.__annotations__)

    @overload
    def __call__(self, inputs: str, *, top_k: int | None, **options: Unpack[TextOptions]) -> list[TextAnswer]: ...
    @overload
    def __call__(self, inputs: str, **options: Unpack[TextOptions]) -> list[TextAnswer]: ...
    @overload
    def __call__(
        self, inputs: Mapping[str, str] | tuple[str, str], *, top_k: int | None, **options: Unpack[TextOptions]
    ) -> list[TextAnswer]: ...
    @overload
    def __call__(self, inputs: Mapping[str, str] | tuple[str, str], **options: Unpack[TextOptions]) -> TextAnswer: ...
    @overload
    def __call__(
        self, inputs: list[TextInput], *, top_k: int | None, **options: Unpack[TextOptions]
    ) -> list[list[TextAnswer]]: ...
    @overload
    def __call__(self, inputs: list[Any], **options: Unpack[TextOptions]) -> list[TextAnswer]: ...
    @overload
    def __call__(
        self, inputs: Iterable[TextInput], *, top_k: int | None, **options: Unpack[TextOptions]
    ) -> Iterator[list[TextAnswer]]: ...
    @overload
    def __call__(self, inputs: Iterable[TextInput], **options: Unpack[TextOptions]) -> Iterator[TextAnswer]: ...
    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Returns the answer, the answers, or an iterator of answers.

        Args:
          inputs: a text, a pair, a list, or an iterable of them.
          top_k: number of labels for each input; None: all.
          function_to_apply: the function of the logits that gives scores: ``sigmoid``, ``softmax`` or ``none``. By
            default none for a regression, sigmoid for several labels a text or for one label, else softmax.
          truncation: which text of a pair is cut if it is too long (``longest_first``, ``only_first``,
            ``only_second``);
            False: none is, and the whole text is computed.
          max_length: largest number of tokens of an input; by default that of the pipeline.
          long_text: how a single text is read that is longer: without its end (``truncate``), without its middle
            (``head-tail``), or in overlapping ``windows``.
          window_score: which score of a text's windows counts: for each label the largest probability (``max``), or the
            ``mean``.
          padding: has no effect: rows are padded as needed.
          batch_size: number of inputs in a forward pass.

        Raises:
          InputError: an input cannot be read, which the message names by its index; or an argument has a value that it
            cannot have; or the scores of an input are not finite and ``non_finite`` is ``refuse``.
        """
        answer = self._call(inputs, options)
        return [answer] if isinstance(inputs, str) and "top_k" not in options else answer

    def logits(self, inputs: list[Any], **options: Unpack[TextOptions]) -> np.ndarray:
        """Returns the logits of a list of inputs, float32 [n, C]."""
        return self._scores(Items(inputs), self._options(options))

    def _check(self, options: Mapping[str, Any]) -> None:
        if options.get("function_to_apply") is not None:
            check_choice(
                "function_to_apply", lowered(options["function_to_apply"]), ("default", "sigmoid", "softmax", "none")
            )
        check_choice("long_text", options.get("long_text", "truncate"), get_args(LongText))
        check_choice("window_score", options.get("window_score", "max"), get_args(WindowScore))
        check_tokenizing(options)

    def _answer(self, items: Items, options: Mapping[str, Any]) -> list[Any]:
        logits = self._scores(items, options)
        broken = self._check_finite(~np.isfinite(logits).all(axis=-1), items)
        logits = np.where(np.isfinite(logits), logits, 0)
        scores = apply_function(logits, options.get("function_to_apply") or "default", self.model.config)
        answers = [self._answer_to(row, options) for row in scores]
        for i in broken:
            answers[i] = blank(answers[i])
        return answers

    def _answer_to(self, scores: np.ndarray, options: Mapping[str, Any]) -> Any:
        count = options.get("top_k", 1)
        order = np.argsort(-scores, kind="stable")[:count].tolist()
        answers = [{"label": self.model.config.id2label[i], "score": float(scores[i])} for i in order]
        return answers if "top_k" in options else answers[0]

    def _scores(self, items: Items, options: Mapping[str, Any]) -> np.ndarray:
        """Returns the logits of all inputs, float32 [n, C]."""
        parts = [read_text_or_pair(item, items.where(i)) for i, item in enumerate(items.values)]
        how: LongText = options.get("long_text", "truncate")
        logits = np.zeros((len(parts), self.model.config.num_labels), np.float32)
        for paired in (False, True):
            members = [i for i, (_, pair) in enumerate(parts) if (pair is not None) == paired]
            if paired and members and how != "truncate":
                raise InputError(
                    f"{items.where(members[0])}: is a pair of texts; long_text={how!r} is for single texts"
                )
            if members and how != "truncate":
                logits[members] = self._long_scores([parts[i][0] for i in members], how, options)
            elif members:
                pairs = [parts[i][1] or "" for i in members] if paired else None
                logits[members] = self._logits(self._features([parts[i][0] for i in members], pairs, options), options)
        return logits

    def _long_scores(self, texts: list[str], how: LongText, options: Mapping[str, Any]) -> np.ndarray:
        """Returns the logits of texts, float32 [n, C]; those that are too long are read as ``long_text`` says."""
        limit, config = self._limit(options), self.model.config
        whole = make_features(self.tokenizer, texts, None, max_length=ALL_TOKENS)
        features = self._checked(split_long(whole, limit, how), limit, HOW_READ[how])
        logits = self._logits(features, options)
        if features.row is None:
            return logits
        several = config.num_labels == 1 and config.problem_type != REGRESSION
        problem = MULTI_LABEL if several else config.problem_type or SINGLE_LABEL
        return joined_logits(logits, features, problem, options.get("window_score", "max"))


def apply_function(logits: np.ndarray, function: str, config: DebertaConfig) -> np.ndarray:
    """Returns the scores of logits [n, C] in float64, by a function's name; ``default`` depends on the config."""
    function = function.lower()
    if function == "default":
        several = config.problem_type == MULTI_LABEL or config.num_labels == 1
        function = "none" if config.problem_type == REGRESSION else "sigmoid" if several else "softmax"
    logits = logits.astype(np.float64)
    if function == "softmax":
        return probabilities(logits)
    return sigmoid(logits) if function == "sigmoid" else logits
