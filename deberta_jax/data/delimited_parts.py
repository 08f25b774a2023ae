"""Reads long csv and tsv files row by row. Their first characters decide how the fields are written."""

import dataclasses
import io
import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from deberta_jax.data.delimited import Dialect, kept_columns, parse_lists, quoted_rows, read_with_dialect, tab_separated
from deberta_jax.data.literals import parse_literal
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError, shown

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Form:
    """Describes how a csv or tsv file is written, by its first rows. Later rows that contradict it are refused.

    Attributes:
      dialect: how the fields are written.
      first: the number of the line that names the columns.
      columns: the names of the fields that are columns, by their position.
      lists: the columns whose values are lists or objects that were written as text.
      has_quotes: whether the first rows have a quote.
    """

    dialect: Dialect
    first: int
    columns: Mapping[int, str]
    lists: frozenset[str]
    has_quotes: bool

    def rows(self, name: str, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
        """Yields (line number, fields) of each row after the header.

        Args:
          name: the name of the file, for messages.
          lines: the lines of the file, with their ends, from the first on.

        Raises:
          InputError: a row has another number of fields, or is written otherwise than the first rows.
        """
        header: list[str] = []
        repeated = 0
        if self.dialect.backslash:
            lines = _only_escapes(name, lines, self.first)
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
                self._check(name, number, fields)
                yield number, fields
        if repeated:
            _log.info("%s: %d lines that repeat the header are left out", name, repeated)

    def _check(self, name: str, number: int, fields: list[str]) -> None:
        """Raises InputError for a row that would have been read otherwise if it were among the first ones."""
        if not self.dialect.quoted and not self.has_quotes:
            for field in fields:
                if len(field) > 1 and field[0] == field[-1] == '"':
                    raise InputError(
                        f"{name}, line {number}: {shown(field)} is in quotes, and the first rows have none; is the "
                        "quote a part of the text? Give the file as .jsonl"
                    )
        for i, field in enumerate(fields):
            if i not in self.columns and field and not field.isdecimal():
                raise InputError(f"{name}, line {number}: {shown(field)} is in a column without a name; name it")

    def table(self, name: str, rows: list[tuple[int, list[str]]]) -> Table:
        """Makes a table of rows. Raises InputError if a value of a column of lists is none."""
        numbers = [number for number, _ in rows]
        columns: dict[str, list[Any]] = {
            column: [fields[i] for _, fields in rows] for i, column in self.columns.items()
        }
        for column in self.lists:
            columns[column] = [_list(name, number, v) for number, v in zip(numbers, columns[column], strict=True)]
        return Table(name, columns, numbers)


def form_of(name: str, begin: str, usual: str, given: str) -> Form:
    """Returns how a file is written, by its first rows.

    Args:
      name: the name of the file, for messages.
      begin: its beginning, which may end within a row.
      usual, given: as for ``read_with_dialect``.

    Raises:
      InputError: as ``read_with_dialect``.
    """
    errors = []
    for end in _row_ends(begin):
        try:
            table, dialect, first = read_with_dialect(name, begin[:end], usual, given)
        except InputError as error:
            errors.append(error)
            continue
        rows = _split_rows(name, itertools.islice(io.StringIO(begin[:end]), first - 1, None), dialect, first)
        _, header = next(rows)
        names = [field.strip() for field in header]
        kept = kept_columns(name, names, [fields for _, fields in rows if fields != header])
        parsed = parse_lists(table)
        lists = frozenset(column for column in table.columns if parsed.columns[column] is not table.columns[column])
        return Form(dialect, first, kept, lists, '"' in begin[:end])
    raise errors[0]


def _row_ends(begin: str) -> list[int]:
    """Returns where the last whole row of the beginning of a file may end, the more probable place first.

    A line end within a quoted field ends no row. There the number of quotes before it is odd; or even, if a text has an
    odd number of quotes.
    """
    ends: dict[int, int] = {}
    end = begin.rfind("\n")
    quotes = begin.count('"', 0, max(end, 0))
    while end >= 0 and len(ends) < 2:
        ends.setdefault(quotes % 2, end + 1)
        before = begin.rfind("\n", 0, end)
        quotes -= begin.count('"', max(before, 0), end)
        end = before
    return [ends[parity] for parity in (0, 1) if parity in ends]


def _only_escapes(name: str, lines: Iterable[str], first: int) -> Iterator[str]:
    """Yields lines. Raises InputError for one with a backslash that is no escape, as those of the first rows are."""
    for number, line in enumerate(lines, first):
        if "\\" in line and re.search(r'\\(?:[^"\\]|\Z)', line.replace("\\\\", "")):
            raise InputError(
                f'{name}, line {number}: a backslash that is no escape, and the first rows write \\" for a quote; '
                "double the backslash, or give the file as .jsonl"
            )
        yield line


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
