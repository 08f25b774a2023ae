"""Defines tables of labelled text, which know the line of each row in its file."""

import bisect
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deberta_jax.data.columns import joined, selected
from deberta_jax.errors import InputError, brief, listed, shown


@dataclasses.dataclass(frozen=True)
class Table:
    """Holds columns of equal length. Values of csv and tsv are strings, others have the types of their format.

    Attributes:
      name: the name of the file, for messages.
      columns: values by column, in the order of the file. Those of a table that is larger than memory are no lists, and
        are read when they are asked for (``data.columns``).
      lines: the first line of each row in its file, or its number in parquet, for messages.
      parts: for a table of several files, (first row, name) of each.
      class_names: for columns of class numbers (ClassLabel of ``datasets``), the names in the order of the numbers.
    """

    name: str
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int]
    parts: tuple[tuple[int, str], ...] = ()
    class_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """Returns the file and line of a row, for messages."""
        return f"{self._file_of(row)}, line {self.lines[row]}"

    def _file_of(self, row: int) -> str:
        if not self.parts:
            return self.name
        return self.parts[bisect.bisect_right(self.parts, row, key=lambda part: part[0]) - 1][1]

    def column(self, name: str) -> Sequence[Any]:
        """Returns a column. Raises InputError, which names the existing columns, if there is none of this name."""
        if name not in self.columns:
            raise InputError(f"{self.name}: no column {name!r}; its columns are {listed(map(repr, self.columns))}")
        return self.columns[name]

    def texts(self, name: str) -> Sequence[str]:
        """Returns a column of text. Raises InputError with the line if a value is missing or no text."""
        values = self.column(name)
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise InputError(f"{self.where(row)}: {name!r} is {shown(value)}; a text is needed")
        return values

    def word_lists(self, name: str) -> Sequence[list[str]]:
        """Returns a column of lists of words. Raises InputError with the line of any other value."""
        values = self.column(name)
        for row, value in enumerate(values):
            if not isinstance(value, list) or not value or not all(isinstance(word, str) for word in value):
                raise InputError(f"{self.where(row)}: {name!r} is {shown(value)}; a list of words is needed")
        return values

    def select(self, rows: Sequence[int] | np.ndarray) -> "Table":
        """Returns a table with only these rows, which are in ascending order."""
        columns = {name: selected(values, rows) for name, values in self.columns.items()}
        parts: list[tuple[int, str]] = []
        for k, row in enumerate(rows if self.parts else ()):
            name = self._file_of(row)
            if not parts or name != parts[-1][1]:
                parts.append((k, name))
        lines = [self.lines[i] for i in rows] if isinstance(self.lines, list | range) else selected(self.lines, rows)
        return dataclasses.replace(self, columns=columns, lines=lines, parts=tuple(parts))

    def with_columns(self, columns: Mapping[str, Sequence[Any]]) -> "Table":
        """Returns the table with these columns added; they replace columns of the same name."""
        return dataclasses.replace(self, columns={**self.columns, **columns})


def join_tables(tables: Sequence[Table]) -> Table:
    """Concatenates the rows of tables.

    The result has the columns of all tables; a row has None in a column that its table lacks.

    Raises:
      InputError: two tables name the classes of a column differently.
    """
    if len(tables) == 1:
        return tables[0]
    names = list(dict.fromkeys(name for table in tables for name in table.columns))
    columns = {name: joined([table.columns.get(name, [None] * len(table)) for table in tables]) for name in names}
    parts, first = [], 0
    class_names: dict[str, tuple[str, ...]] = {}
    for table in tables:
        parts.append((first, table.name))
        first += len(table)
        for column, classes in table.class_names.items():
            if class_names.setdefault(column, classes) != classes:
                raise InputError(f"{table.name}: names the classes of {column!r} otherwise than {tables[0].name} does")
        for column in class_names.keys() & table.columns.keys() - table.class_names.keys():
            raise InputError(f"{table.name}: does not name the classes of {column!r}, as {tables[0].name} does")
    lines = joined([list(table.lines) if isinstance(table.lines, range) else table.lines for table in tables])
    return Table(f"{tables[0].name} and {len(tables) - 1} more", columns, lines, tuple(parts), class_names)


def reason(error: Exception) -> str:
    """Returns the message of an exception in one line."""
    if isinstance(error, KeyError):
        return f"{brief(error)} is missing"
    return brief(error, 300) or type(error).__name__
