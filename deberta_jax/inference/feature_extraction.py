"""Defines the pipeline ``feature-extraction``: the hidden states of all tokens of texts."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, TypedDict, Unpack, overload

import numpy as np

from deberta_jax.inference.calls import Items, Pipeline, read_text, with_tokenizing
from deberta_jax.tasks.finite import rows_not_finite


class FeatureOptions(TypedDict, total=False):
    """Holds the arguments of a call of ``FeatureExtractor``, except ``return_tensors``."""

    truncation: Any
    max_length: int | None
    tokenize_kwargs: dict[str, Any]
    batch_size: int


class FeatureOptionsOfPipeline(FeatureOptions, total=False):
    """Holds all arguments of a call of ``FeatureExtractor``."""

    return_tensors: bool


@dataclasses.dataclass(frozen=True, repr=False)
class FeatureExtractor(Pipeline):
    """Computes the hidden states of all tokens of texts, including [CLS] and [SEP].

    As in transformers, a text gives a nested list ``[1, T, D]`` of floats, and a list of texts a list of these; T is
    the text's own number of tokens, without padding.
    """

    task: ClassVar[str] = "feature-extraction"
    arguments: ClassVar[frozenset[str]] = frozenset(FeatureOptionsOfPipeline.__annotations__)

    @overload
    def __call__(
        self, inputs: str, *, return_tensors: Literal[True], **options: Unpack[FeatureOptions]
    ) -> np.ndarray: ...
    @overload
    def __call__(
        self, inputs: list[str], *, return_tensors: Literal[True], **options: Unpack[FeatureOptions]
    ) -> list[np.ndarray]: ...
    @overload
    def __call__(self, inputs: str, **options: Unpack[FeatureOptionsOfPipeline]) -> list[list[list[float]]]: ...
    @overload
    def __call__(
        self, inputs: list[str], **options: Unpack[FeatureOptionsOfPipeline]
    ) -> list[list[list[list[float]]]]: ...
    @overload
    def __call__(self, inputs: Iterable[str], **options: Unpack[FeatureOptionsOfPipeline]) -> Iterator[Any]: ...
    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Returns the hidden states, a list, or an iterator of them.

        Args:
          inputs: a text, a list of texts, or an iterable of them.
          return_tensors: whether to return float32 arrays of numpy instead of nested lists.
          truncation: False: no text is cut; otherwise those longer than ``max_length`` are, with a warning.
          max_length: largest number of tokens of a text; by default that of the pipeline.
          tokenize_kwargs: ``truncation``, ``padding`` and ``max_length`` as a dict; padding has no effect.
          batch_size: number of texts in a forward pass.

        Raises:
          InputError: an input is not a text, which the message names by its index; or an argument has a value that it
            cannot have; or the values of an input are not finite and ``non_finite`` is ``refuse``.
        """
        return self._call(inputs, options)

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return with_tokenizing(super()._options(given), "tokenize_kwargs")

    def _answer(self, items: Items, options: Mapping[str, Any]) -> list[Any]:
        texts = [read_text(item, items.where(i)) for i, item in enumerate(items.values)]
        features = self._features(texts, None, options)
        states = self._logits(features, options)
        broken = self._check_finite(rows_not_finite(states, features, len(texts)), items)
        arrays = np.split(states, features.starts[1:-1])
        arrays = [None if i in broken else array[None] for i, array in enumerate(arrays)]
        if options.get("return_tensors"):
            return arrays
        return [None if array is None else array.tolist() for array in arrays]
