"""Reads long csv and tsv files row by row. Their first characters decide how the fields are written."""

import dataclasses
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from deberta_jax.data.delimited import Dialect, parse_lists, quoted_rows, read_with_dialect, tab_separated
from deberta_jax.data.literals import parse_literal
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError, shown

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Form:
    """Describes how a csv or tsv file is written.

    Attributes:
      dialect: how the fields are written.
      first: the number of the line that names the columns.
      columns: for each field of a row the name of its column; None for one that is left out.
      lists: the columns whose values are lists or objects that were written as text.
    """

    dialect: Dialect
    first: int
    columns: tuple[str | None, ...]
    lists: frozenset[str]

    def rows(self, name: str, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
        """Yields (line number, fields) of each row after the header.

        Args:
          name: the name of the file, for messages.
          lines: the lines of the file, with their ends, from the first on.

        Raises:
          InputError: a row has another number of fields, or quotes are wrong.
        """
        header: list[str] = []
        repeated = 0
        for number, fields in _split_rows(name, lines, self.dialect, self.first):
            if not header:
                header = fields
            elif len(fields) != len(header):
                raise InputError(
                    f"{name}, line {number}: {len(fields)} fields where the header names {len(header)}; mend the line"
                )
            elif fields == header and len(header) > 1:
                repeated += 1
            else:
                yield number, fields
        if repeated:
            _log.info("%s: %d lines that repeat the header are left out", name, repeated)

    def table(self, name: str, rows: list[tuple[int, list[str]]]) -> Table:
        """Makes a table of rows. Raises InputError if a value of a column of lists is none."""
        numbers = [number for number, _ in rows]
        columns: dict[str, list[Any]] = {
            column: [fields[i] for _, fields in rows] for i, column in enumerate(self.columns) if column is not None
        }
        for column in self.lists:
            columns[column] = [_list(name, number, v) for number, v in zip(numbers, columns[column], strict=True)]
        return Table(name, columns, numbers)


def form_of(name: str, sample: str, usual: str, given: str) -> Form:
    """Returns how a file is written, by its first rows.

    Args:
      name: the name of the file, for messages.
      sample: the first rows, with the header.
      usual, given: as for ``read_with_dialect``.

    Raises:
      InputError: as ``read_with_dialect``.
    """
    table, dialect, first = read_with_dialect(name, sample, usual, given)
    lines = sample.splitlines(keepends=True)[first - 1 :][:100]
    _, header = next(_split_rows(name, lines, dialect, first))
    names = [field.strip() for field in header]
    parsed = parse_lists(table)
    lists = frozenset(column for column in table.columns if parsed.columns[column] is not table.columns[column])
    return Form(dialect, first, tuple(n if n in table.columns else None for n in names), lists)


def last_row_end(sample: str) -> int:
    """Returns where the last whole row of the beginning of a file ends.

    A line end within a quoted field ends no row: there the number of quotes before it is odd. In files whose quotes are
    ordinary characters any line end will do.
    """
    end = sample.rfind("\n")
    quotes = sample.count('"', 0, end)
    at = end
    while quotes % 2 and at > 0:
        before = sample.rfind("\n", 0, at)
        quotes -= sample.count('"', max(before, 0), at)
        at = before
    return (at if at > 0 else end) + 1


def _split_rows(name: str, lines: Iterable[str], dialect: Dialect, first: int) -> Iterator[tuple[int, list[str]]]:
    if dialect.quoted:
        yield from quoted_rows(name, lines, dialect, first)
        return
    for number, line in enumerate(lines, first):
        yield from tab_separated(line.removesuffix("\n"), number)


def _list(name: str, number: int, value: str) -> Any:
    try:
        return parse_literal(value) if value.strip() else None
    except ValueError:
        raise InputError(
            f"{name}, line {number}: {shown(value)} is no list, as the rows before it have in this column"
        ) from None
