"""Divides texts without labels into batches of few different shapes, and pads them."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from deberta_jax.data.features import Features

# The time to read the weights, in token slots: about this on CPUs, TPUs and GPUs.
_SLOTS_PER_BATCH = 64


class TextBatch(NamedTuple):
    """Describes a batch of texts without labels: the texts ``members`` in the first of ``rows`` rows of ``length``."""

    members: np.ndarray
    rows: int
    length: int


def plan_in_order(
    lengths: np.ndarray, sizes: Sequence[int], max_length: int, max_slots: int | None = None
) -> list[TextBatch]:
    """Plans a pass over all texts, longest first, so that a lack of memory shows at once.

    The batches are those with the fewest token slots in all, where each batch counts as many more as reading the
    weights takes time. Lengths of rows are those of ``padded_length``: calls with other texts share a few compiled
    programs.

    Args:
      lengths: int [n], tokens of each text.
      sizes: possible numbers of rows of a batch, ascending.
      max_length: most tokens of a text.
      max_slots: most token slots of a batch, as for ``sizes_within``.
    """
    order = np.argsort(-lengths, kind="stable")
    padded = [padded_length(int(length), max_length) for length in lengths[order]]
    # The cost of the texts from each one on, and the size of the batch that begins with it.
    best: list[tuple[int, int]] = [(0, 0)] * (len(order) + 1)
    for first in reversed(range(len(order))):
        possible = sizes_within(sizes, padded[first], max_slots)
        rest = ((size * padded[first] + best[min(first + size, len(order))][0], size) for size in possible)
        cost, size = min(rest)
        best[first] = (cost + _SLOTS_PER_BATCH, size)
    batches, first = [], 0
    while first < len(order):
        size = best[first][1]
        batches.append(TextBatch(order[first : first + size], size, padded[first]))
        first += size
    return batches


def sizes_within(sizes: Sequence[int], length: int, max_slots: int | None) -> Sequence[int]:
    """Returns the numbers of rows whose batches of a padded length have at most ``max_slots`` token slots.

    The smallest number is always possible.

    Args:
      sizes: numbers of rows, ascending.
      length: the padded length.
      max_slots: most token slots of a batch; None: no limit.
    """
    if max_slots is None:
        return sizes
    return [size for size in sizes if size * length <= max_slots] or sizes[:1]


def shape_size(count: int) -> int:
    """Returns the next number of 1, 2, 3, 4, 6, 8, 12, ...: a power of two, or half-way between two of them."""
    power = 1 << max(count - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and power * 3 // 4 >= count else power


def padded_length(length: int, max_length: int) -> int:
    """Returns the length of the rows for texts of ``length`` tokens: at least 16, one of ``shape_size``."""
    return min(max(16, shape_size(length)), max_length)


def pad_texts(features: Features, texts: Iterable[Any], rows: int, length: int, pad_id: int) -> dict[str, np.ndarray]:
    """Pads texts to a batch, one per row. Rows after the last text are padding.

    Args:
      features: tokens of all texts.
      texts: indices of the texts of this batch.
      rows: rows of the batch.
      length: length of a row.
      pad_id: the token id of padding.

    Returns:
      input_ids and token_type_ids int32 [rows, length], attention_mask bool [rows, length].
    """
    batch = {
        "input_ids": np.full((rows, length), pad_id, np.int32),
        "attention_mask": np.zeros((rows, length), bool),
        "token_type_ids": np.zeros((rows, length), np.int32),
    }
    for row, i in enumerate(texts):
        start, end = features.starts[i], features.starts[i + 1]
        batch["input_ids"][row, : end - start] = features.ids[start:end]
        batch["token_type_ids"][row, : end - start] = features.types[start:end]
        batch["attention_mask"][row, : end - start] = True
    return batch
