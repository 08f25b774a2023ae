"""Packs several texts into one row: assigns examples to rows, and builds the rows as arrays."""

import bisect
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

import numpy as np

from deberta_jax.data.features import EXAMPLE, SPAN, TOKEN, Features

T = TypeVar("T")


class OpenRows(Generic[T]):
    """Keeps the rows that have room, each with a number and a value, and finds the best fit for an item."""

    def __init__(self):
        self._rows: list[tuple[int, int, T]] = []  # ascending

    def add(self, room: int, number: int, value: T) -> None:
        """Adds a row with room for ``room`` tokens. No two rows with the same room have the same number."""
        bisect.insort(self._rows, (room, number, value))

    def take(self, size: int) -> tuple[int, int, T] | None:
        """Removes and returns the fullest row that holds ``size`` tokens, of equal ones the lowest number, or None."""
        at = bisect.bisect_left(self._rows, (size,))
        return self._rows.pop(at) if at < len(self._rows) else None

    def __iter__(self) -> Iterator[tuple[int, int, T]]:
        return iter(self._rows)


def pack(lengths: np.ndarray, row_length: int, slots: int) -> tuple[np.ndarray, int]:
    """Assigns items to rows: longest first, each to the fullest row that can hold it.

    Args:
      lengths: int [n], tokens of each item, none above ``row_length``.
      row_length: the largest number of tokens in a row.
      slots: the largest number of items in a row.

    Returns:
      The row of each item, int64 [n], and the number of rows.
    """
    rows = np.empty(len(lengths), np.int64)
    open_rows: OpenRows[int] = OpenRows()  # by number, with their free slots
    count = 0
    for i in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[i])
        room, row, free_slots = open_rows.take(length) or (row_length, count, slots)
        count = max(count, row + 1)
        rows[i] = row
        if free_slots > 1 and room > length:
            open_rows.add(room - length, row, free_slots - 1)
    return rows, count


@dataclasses.dataclass(frozen=True)
class Packing:
    """Describes the shapes of packed batches."""

    row_length: int
    """Tokens of a row."""
    slots: int
    """Most examples of a row."""
    counts: tuple[int, ...]
    """Possible numbers of rows, ascending. Each is one compiled program."""

    def rows(self, needed: int) -> int:
        """Returns the smallest possible number of rows that is not below ``needed``."""
        return next(count for count in self.counts if count >= needed)


def choose_packing(
    lengths: np.ndarray,
    batches: Iterable[np.ndarray],
    *,
    row_length: int,
    multiple: int,
    batch_size: int = 0,
    programs: int = 3,
) -> Packing:
    """Chooses the shapes of packed batches.

    A row is as long as the longest example and as three examples of mean length: the cost of attention grows with the
    square of the length, but shorter rows have more padding.

    Args:
      lengths: int [examples], tokens of each example.
      batches: the examples of each batch of the run, or of a part of it.
      row_length: tokens of a row; 0 chooses a length.
      multiple: numbers of rows are multiples of this.
      batch_size: examples of the largest batch where ``batches`` is only a part of the run; one more number of rows
        then holds any batch of this size. 0: ``batches`` is the whole run.
      programs: most numbers of rows.
    """
    longest, mean = int(lengths.max()), float(lengths.mean())
    if not row_length:
        row_length = -(-int(max(longest, 3 * mean)) // 8) * 8
    # A row of very short texts could hold more examples than this; four times the mean number is enough in practice.
    slots = max(1, min(row_length // max(int(lengths.min()), 1), int(4 * row_length / mean)))
    needed = np.fromiter((pack(lengths[members], row_length, slots)[1] for members in batches), np.int64)
    rounded = lambda n: -(-int(n) // multiple) * multiple
    counts = {rounded(np.quantile(needed, q, method="higher")) for q in np.arange(1, programs + 1) / programs}
    if batch_size:
        counts.add(rounded(most_rows(lengths, batch_size, row_length, slots)))
    return Packing(row_length, slots, tuple(sorted(counts)))


def most_rows(lengths: np.ndarray, count: int, row_length: int, slots: int) -> int:
    """Returns a number of rows that ``pack`` never exceeds, for any ``count`` of the items.

    A row begins where no other has room. So any two rows that are not full of items hold more than ``row_length``
    tokens together, and the rows that are not full of items hold more than half of their tokens on average.

    Args:
      lengths: int [n], tokens of each item.
      count: number of items that are packed.
      row_length, slots: as for ``pack``.
    """
    count = min(count, len(lengths))
    tokens = int(np.partition(lengths, len(lengths) - count)[len(lengths) - count :].sum())
    return min(count, 2 * tokens // row_length + 1 + count // slots)


def packed_batch(
    features: Features, members: np.ndarray, row_of: np.ndarray, rows: np.ndarray, packing: Packing, pad_id: int
) -> dict[str, np.ndarray]:
    """Builds rows of a packed batch.

    Args:
      features: tokens and labels of all examples.
      members: int [n], the examples of the batch.
      row_of: int [n], the row of each of them.
      rows: int [R], the rows to build, ascending: those of this process.
      packing: the shapes of batches.
      pad_id: the token id of padding.

    Returns:
      input_ids, token_type_ids and segment_ids int32 [R, T]; segment 0 is padding, text k of a row is segment k + 1.
      If examples have labels, ``positions`` int32 [R, P], P = slots * choices: the first token of each text, -1 for
      none. ``labels`` as the features have them: [R, slots] or [R, slots, C] for examples, [R, T] for tokens,
      [R, slots, 2] for answers, counted from the beginning of the row. Without a label they are -100, -1 for answers,
      NaN for floats.
    """
    count, length, slots, choices = len(rows), packing.row_length, packing.slots, features.choices
    batch = {
        "input_ids": np.full((count, length), pad_id, np.int32),
        "token_type_ids": np.zeros((count, length), np.int32),
        "segment_ids": np.zeros((count, length), np.int32),
    }
    if features.level == EXAMPLE:
        batch["positions"] = np.full((count, slots * choices), -1, np.int32)
    if features.labels is not None:
        batch["labels"] = empty_labels(features, count, length, slots)
    filled, used = np.zeros(count, np.int64), np.zeros(count, np.int64)
    local = {int(row): i for i, row in enumerate(rows)}
    mine = np.flatnonzero(np.isin(row_of, rows))
    for k in mine.tolist():
        example, row = int(members[k]), local[int(row_of[k])]
        slot = int(used[row])
        for choice, text in enumerate(features.texts_of(example)):
            start, end = int(features.starts[text]), int(features.starts[text + 1])
            if start == end:
                continue
            at = int(filled[row])
            index = (row, slice(at, at + end - start))
            batch["input_ids"][index] = features.ids[start:end]
            batch["token_type_ids"][index] = features.types[start:end]
            batch["segment_ids"][index] = slot * choices + choice + 1
            if features.level == EXAMPLE:
                batch["positions"][row, slot * choices + choice] = at
            if features.labels is not None and features.level == TOKEN:
                batch["labels"][index] = features.labels[start:end]
            if features.labels is not None and features.level == SPAN:
                answer = features.labels[text]
                batch["labels"][row, slot] = np.where(answer >= 0, answer + at, -1)
            filled[row] += end - start
        if features.labels is not None and features.level == EXAMPLE:
            batch["labels"][row, slot] = features.labels[example]
        used[row] += 1
    return batch


def empty_labels(features: Features, rows: int, length: int, slots: int | None) -> np.ndarray:
    """Returns labels of a batch without examples, as in ``packed_batch`` and ``pad_batch``.

    Args:
      features: their level and dtype determine shape and dtype of the labels.
      rows: rows of the batch.
      length: length of a row.
      slots: examples per row of a packed batch; None if each row is an example.
    """
    assert features.labels is not None
    kind = features.labels.dtype
    if features.level == TOKEN:
        return np.full((rows, length), -100, np.int32)
    shape = (rows,) if slots is None else (rows, slots)
    if features.level == SPAN:
        return np.full((*shape, 2), -1, np.int32)
    nothing = np.nan if kind == np.float32 else -100
    return np.full((*shape, *features.labels.shape[1:]), nothing, kind)
