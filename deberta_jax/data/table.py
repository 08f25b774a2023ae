"""A table: columns of labelled text, and where each row stands in its file."""

import bisect
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from deberta_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of equal length, in file order; csv and tsv values are str, others what their format gives.

    Attributes:
      lines: the line of the file that each row starts at (its number, in a parquet file), for messages.
      parts: of a table of several files, the first row of each and its name.
      class_names: of columns of numbers whose file names the classes (parquet's ClassLabel), those names by number.
    """

    name: str
    columns: dict[str, list[Any]]
    lines: Sequence[int]
    parts: tuple[tuple[int, str], ...] = ()
    class_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """Returns file and line of a row, for a message."""
        name = self.name
        if self.parts:
            name = self.parts[bisect.bisect_right(self.parts, row, key=lambda part: part[0]) - 1][1]
        return f"{name}, line {self.lines[row]}"

    def column(self, name: str) -> list[Any]:
        """Returns a column. Raises InputError with the columns there are if ``name`` is none of them."""
        if name not in self.columns:
            raise InputError(f"{self.name}: no column {name!r}; its columns are {', '.join(map(repr, self.columns))}")
        return self.columns[name]

    def texts(self, name: str) -> list[str]:
        """Returns a column of text. Raises InputError naming the line of a value that is missing or no text."""
        values = self.column(name)
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise InputError(f"{self.where(row)}: {name!r} is {shown(value)}; a text is needed")
        return values

    def word_lists(self, name: str) -> list[list[str]]:
        """Returns a column of lists of words. Raises InputError naming the line of anything else."""
        values = self.column(name)
        for row, value in enumerate(values):
            if not isinstance(value, list) or not value or not all(isinstance(word, str) for word in value):
                raise InputError(f"{self.where(row)}: {name!r} is {shown(value)}; a list of words is needed")
        return values

    def select(self, rows: Sequence[int]) -> "Table":
        """Returns a table of these rows alone."""
        columns = {name: [values[i] for i in rows] for name, values in self.columns.items()}
        parts = tuple((k, self.where(i).rpartition(", line ")[0]) for k, i in enumerate(rows)) if self.parts else ()
        return dataclasses.replace(self, columns=columns, lines=[self.lines[i] for i in rows], parts=parts)

    def with_columns(self, columns: Mapping[str, list[Any]]) -> "Table":
        """Returns the table with these columns added, or in the place of those of the same name."""
        return dataclasses.replace(self, columns={**self.columns, **columns})


def join_tables(tables: Sequence[Table]) -> Table:
    """Returns the rows of several tables, one after the other.

    Columns are all that any table has; a row has None where its table lacks one.

    Raises:
      InputError: two tables that name the classes of one column differently.
    """
    if len(tables) == 1:
        return tables[0]
    names = list(dict.fromkeys(name for table in tables for name in table.columns))
    columns = {name: [v for t in tables for v in t.columns.get(name, [None] * len(t))] for name in names}
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
    lines = [line for table in tables for line in table.lines]
    return Table(f"{tables[0].name} and {len(tables) - 1} more", columns, lines, tuple(parts), class_names)


def shown(value: Any, most: int = 80) -> str:
    """Returns a value as it stands in a message: its repr, cut where it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def reason(error: Exception) -> str:
    """Returns an exception of a conversion as words in a line."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return " ".join(str(error).split()) or type(error).__name__
