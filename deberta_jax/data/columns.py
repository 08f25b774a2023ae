"""Defines columns that are not lists: parts of other columns, and several columns one behind the other."""

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import numpy as np

_HELD = 1 << 16
"""A selection of at most so many values is kept in memory once it has been read."""


class LazyColumn(Sequence[Any]):
    """Reads values when they are asked for. A slice of it is a list."""

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        count = len(self)
        if isinstance(index, slice):
            return [self.value(i) for i in range(*index.indices(count))]
        if not -count <= index < count:
            raise IndexError(f"row {index} of {count}")
        return self.value(index % count)

    def __iter__(self) -> Iterator[Any]:
        return map(self.value, range(len(self)))

    def value(self, row: int) -> Any:
        """Returns the value of a row that exists, counted from 0."""
        raise NotImplementedError


class Blocks(LazyColumn):
    """Holds a column that is read in blocks of consecutive rows, and keeps the block that was read last.

    Args:
      starts: the first row of each block, and the number of all rows.
      read: returns the values of a block, given its number.
    """

    def __init__(self, starts: Sequence[int], read: Callable[[int], list[Any]]):
        self.starts, self.read = starts, read
        self.latest: tuple[int, int, list[Any]] = (0, 0, [])  # first row, end, values

    def __len__(self) -> int:
        return self.starts[-1]

    def value(self, row: int) -> Any:
        first, end, values = self.latest
        if not first <= row < end:
            block = bisect.bisect_right(self.starts, row) - 1
            first, values = self.starts[block], self.read(block)
            self.latest = first, self.starts[block + 1], values
        return values[row - first]


class Selected(LazyColumn):
    """Holds the values of some rows of another column.

    Args:
      column: the other column.
      rows: the numbers of its rows, such as a range or an array of integers.
    """

    def __init__(self, column: Sequence[Any], rows: Sequence[int] | np.ndarray):
        self.column, self.rows = column, rows
        self.held: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def value(self, row: int) -> Any:
        if self.held is None and len(self.rows) <= _HELD:
            self.held = [self.column[int(i)] for i in self.rows]
        return self.column[int(self.rows[row])] if self.held is None else self.held[row]


class Joined(LazyColumn):
    """Holds the values of several columns, one behind the other."""

    def __init__(self, columns: Sequence[Sequence[Any]]):
        self.columns = columns
        self.starts = [0, *itertools.accumulate(map(len, columns))]

    def __len__(self) -> int:
        return self.starts[-1]

    def value(self, row: int) -> Any:
        part = bisect.bisect_right(self.starts, row) - 1
        return self.columns[part][row - self.starts[part]]


def joined(columns: Sequence[Sequence[Any]]) -> Sequence[Any]:
    """Returns the values of several columns in one: in a list if all are lists."""
    if all(isinstance(column, list) for column in columns):
        return list(itertools.chain.from_iterable(columns))
    return Joined(columns)


def selected(column: Sequence[Any], rows: Sequence[int] | np.ndarray) -> Sequence[Any]:
    """Returns the values of some rows: in a list if the column is one."""
    return [column[i] for i in rows] if isinstance(column, list) else Selected(column, rows)
