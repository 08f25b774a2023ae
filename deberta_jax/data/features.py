"""Tokenised examples in three flat arrays, whatever their lengths."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from deberta_jax.errors import InputError


@runtime_checkable
class TokenizerLike(Protocol):
    """What this floor needs of a tokenizer."""

    def encode_ragged(
        self,
        texts: Sequence[str],
        text_pairs: Sequence[str] | None = None,
        max_length: int | None = None,
    ) -> list[tuple[np.ndarray, np.ndarray]]: ...


@dataclasses.dataclass(frozen=True)
class Features:
    """n examples: example i is ``ids[starts[i]:starts[i+1]]``, int32, special tokens included.

    ``types`` are the token type ids, int8; ``labels`` int32 ids or float32 numbers [n], or None. ``cut`` counts the
    examples that were longer than the limit and lost their ends.
    """

    ids: np.ndarray
    types: np.ndarray
    starts: np.ndarray
    labels: np.ndarray | None
    cut: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)


def make_features(
    tokenizer: TokenizerLike,
    texts: Sequence[str],
    text_pairs: Sequence[str] | None,
    *,
    max_length: int,
    labels: np.ndarray | None = None,
) -> Features:
    """Tokenises texts or pairs, cutting the longer part's end where an example exceeds ``max_length`` tokens."""
    encoded = tokenizer.encode_ragged(texts, text_pairs, max_length=max_length)
    lengths = np.asarray([len(ids) for ids, _ in encoded], np.int64)
    at_limit = np.flatnonzero(lengths >= max_length).tolist()
    cut = 0
    if at_limit:
        pairs = None if text_pairs is None else [text_pairs[i] for i in at_limit]
        whole = tokenizer.encode_ragged([texts[i] for i in at_limit], pairs)
        cut = sum(len(ids) > max_length for ids, _ in whole)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.concatenate([ids for ids, _ in encoded]).astype(np.int32)
    types = np.concatenate([types for _, types in encoded]).astype(np.int8)
    return Features(ids, types, starts, labels, cut)


def check_vocabulary(features: Features, vocab_size: int, where: str) -> None:
    """Raises InputError where an id has no row in the word table; on a device such a lookup cannot fail."""
    top = int(features.ids.max())
    if top >= vocab_size:
        raise InputError(
            f"{where}: token id {top} is outside the model's vocabulary of {vocab_size}; "
            "tokenizer and config.json do not belong together"
        )
