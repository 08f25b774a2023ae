"""Reads csv and tsv files in the dialects that spreadsheets, pandas and the GLUE benchmark write."""

import csv
import dataclasses
import io
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

from deberta_jax.data.literals import parse_literal
from deberta_jax.data.reading import LONGEST_LINE
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError

_log = logging.getLogger(__name__)

_DELIMITERS = (",", ";", "\t", "|")
_MARK = "\ufeff"
_UNNAMED = re.compile(r"(Unnamed: \d+)?")


@dataclasses.dataclass(frozen=True)
class Dialect:
    """Describes how fields are written."""

    delimiter: str
    quoted: bool = True
    """Whether fields may be quoted; otherwise a quote is an ordinary character."""
    blanks: bool = False
    """Whether spaces after a delimiter are ignored."""
    backslash: bool = False
    """Whether a quote in a quoted field is escaped by a backslash instead of being doubled."""

    def __str__(self) -> str:
        said = [f"{self.delimiter!r} between the fields"]
        said += ["blanks after it left out"] if self.blanks else []
        said += ['\\" read as a quote'] if self.backslash else []
        return ", ".join(said)


def check_delimiter(delimiter: str) -> str:
    """Returns the character that ``--delimiter`` means: itself, or a name such as "tab"; ``\\t`` is a tab too.

    Raises:
      InputError: it is more than one character, or cannot separate fields.
    """
    named = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}.get(delimiter, delimiter)
    if named and (len(named) > 1 or named in '"\r\n'):
        raise InputError(f"--delimiter {delimiter!r}: give one character that is no quote, or the word tab")
    return named


def read_csv(name: str, text: str, delimiter: str = "") -> Table:
    """Reads csv, whose first line names the columns.

    The delimiter is a comma, or the character that a first line such as ``sep=;`` names. If commas give no table,
    ``;``, tab and ``|`` are tried, and the choice is logged.

    Args:
      name: the name of the file, for messages.
      text: its contents.
      delimiter: the delimiter, if it is known.

    Raises:
      InputError: a line has another number of fields than the header, or quotes are wrong.
    """
    return parse_lists(read_with_dialect(name, text, ",", delimiter)[0])


def read_tsv(name: str, text: str, delimiter: str = "") -> Table:
    """Reads tab-separated text; otherwise as ``read_csv``.

    A quote is an ordinary character unless every field that contains one is correctly quoted: GLUE's files have
    unpaired quotes, while pandas quotes fields.
    """
    return parse_lists(read_with_dialect(name, text, "\t", delimiter)[0])


def read_with_dialect(name: str, text: str, usual: str, given: str) -> tuple[Table, Dialect, int]:
    """Reads csv or tsv, whose fields are text.

    Args:
      name: the name of the file, for messages.
      text: its contents.
      usual: the delimiter of such files.
      given: the delimiter, if it is known.

    Returns:
      The table, how its fields are written, and the number of the line with the names of the columns.

    Raises:
      InputError: as ``read_csv``.
    """
    if "\n" not in text:
        text = text.replace("\r", "\n")
    first = 1
    if match := re.match(r'"?sep=(.)"?\r?\n', text):
        text, first = text[match.end() :], 2
        given = given or match[1]
        _log.info("%s: read with %r between the fields, as its first line says", name, given)
    if given:
        return *_table(name, text, given, given == usual == "\t", first), first
    try:
        table, dialect = _table(name, text, usual, usual == "\t", first)
        why = None
    except InputError as error:
        table, dialect, why = None, None, error
    if table is None or len(table.columns) < 2:
        header = text.partition("\n")[0]
        for other in _DELIMITERS:
            if other == usual or other not in header:
                continue
            try:
                found, dialect_found = _table(name, text, other, False, first)
            except InputError:
                continue
            if len(found.columns) > 1:
                _log.info("%s: read with %s", name, dialect_found)
                return found, dialect_found, first
    if table is None or dialect is None:
        assert why is not None
        raise why
    if dialect.blanks or dialect.backslash:
        _log.info("%s: read with %s", name, dialect)
    return table, dialect, first


def _table(name: str, text: str, delimiter: str, plain: bool, first: int) -> tuple[Table, Dialect]:
    """Reads a table with a known delimiter.

    Args:
      name: the name of the file, for messages.
      text: its contents.
      delimiter: the delimiter.
      plain: whether quotes are ordinary characters unless all of them quote fields, as in tsv.
      first: the number of the first line.

    Returns:
      The table, and how it was read.
    """
    clean, blanks = _quotes(text, delimiter) if '"' in text else (True, False)
    if plain and '"' in text:
        quoted = None
        if clean:
            try:
                quoted = _parsed(name, text, Dialect(delimiter), first)
            except InputError:
                clean = False
        if quoted is None or _fits_raw(name, text, quoted):
            _log.info("%s: a quote is read as a character of the text, for not every one quotes a field", name)
            return table_of_lines(name, tab_separated(text, first)), Dialect(delimiter, quoted=False)
        _log.info("%s: its quoted fields are decoded", name)
        return quoted, Dialect(delimiter)
    if plain:
        return table_of_lines(name, tab_separated(text, first)), Dialect(delimiter, quoted=False)
    dialects = [Dialect(delimiter, blanks=blanks)]
    # If backslashes occur only before quotes and backslashes, they are escapes, unless all quotes are correct without.
    if '\\"' in text and not re.search(r'\\(?:[^"\\]|\Z)', text.replace("\\\\", "")):
        dialects.insert(len(dialects) if clean else 0, dataclasses.replace(dialects[0], backslash=True))
    errors = {}
    for dialect in dialects:
        try:
            return _parsed(name, text, dialect, first), dialect
        except InputError as error:
            errors[dialect.backslash] = error
    raise errors[False]


def _fits_raw(name: str, text: str, quoted: Table) -> bool:
    """Returns whether reading without quoting gives more rows: then quotes of two different texts had been paired."""
    try:
        raw = table_of_lines(name, tab_separated(text))
    except InputError:
        return False
    return len(raw) > len(quoted)


def _quotes(text: str, delimiter: str) -> tuple[bool, bool]:
    """Returns whether every quote belongs to a quoted field, and whether spaces precede any quoted field."""
    end = re.escape(delimiter) + r"\r\n"
    field = re.compile(rf'"(?:[^"]++|"")*+"(?=[{end}]|\Z)')
    border = re.compile(rf"[{end}]")
    clean, blanks, at = True, False, 0
    while (at := text.find('"', at)) >= 0:
        before = at
        while before and text[before - 1] == " ":
            before -= 1
        begins = before == 0 or text[before - 1] in (delimiter, "\n", "\r", _MARK)
        match = field.match(text, at) if begins else None
        if match is None:
            clean = False
            following = border.search(text, at)
            at = len(text) if following is None else following.start()
            continue
        blanks |= before < at
        at = match.end()
    return clean, blanks


def _parsed(name: str, text: str, dialect: Dialect, first: int) -> Table:
    """Reads a table with Python's csv module. Raises InputError with the line of an error."""
    return table_of_lines(name, quoted_rows(name, io.StringIO(text), dialect, first))


def quoted_rows(name: str, text: Iterable[str], dialect: Dialect, first: int) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, fields) of each row that is not empty, read with Python's csv module.

    Args:
      name: the name of the file, for messages.
      text: the lines of the file, with their ends.
      dialect: how fields are written.
      first: the number of the first line.

    Raises:
      InputError: quotes are wrong; with the line.
    """
    begins = True  # whether the next line is the first of a row

    def lines() -> Iterator[str]:
        nonlocal begins
        for line in text:
            # Concatenated files keep the byte-order mark of each.
            if begins:
                line = line.removeprefix(_MARK)
                begins = False
            yield line

    escape: dict[str, Any] = {"escapechar": "\\", "doublequote": False} if dialect.backslash else {}
    reader = csv.reader(lines(), delimiter=dialect.delimiter, skipinitialspace=dialect.blanks, strict=True, **escape)
    limit = csv.field_size_limit(LONGEST_LINE)  # the default limit is 128 KiB
    before = 0
    try:
        for row in reader:
            start, before, begins = before + first, reader.line_num, True
            if row:
                yield start, row
    except csv.Error as error:
        why = "a carriage return in a field without quotes" if "new-line character" in str(error) else str(error)
        hint = '; a quote in a quoted field is written twice: ""' if "expected after" in str(error) else ""
        raise InputError(f"{name}, line {reader.line_num + first - 1}: {why}{hint}") from None
    finally:
        csv.field_size_limit(limit)


def tab_separated(text: str, first: int = 1) -> list[tuple[int, list[str]]]:
    """Splits text into (line number, fields) of each line that is not empty. Quotes are ordinary characters."""
    lines = ((number, line.rstrip("\r").removeprefix(_MARK)) for number, line in enumerate(text.split("\n"), first))
    return [(number, line.split("\t")) for number, line in lines if line]


def table_of_lines(name: str, lines: Iterable[tuple[int, list[str]]]) -> Table:
    """Makes a table of (line number, fields), of which the first names the columns.

    A line that repeats the header, as in concatenated files, is left out, and the number of these is logged. A column
    without a name that is empty or numbers the rows, such as the index that pandas writes, is left out too.

    Raises:
      InputError: a column name occurs twice, or a line has another number of fields.
    """
    header: list[str] = []
    first: list[str] = []
    rows, numbers, repeated = [], [], 0
    for number, fields in lines:
        if not header:
            first, header = fields, [field.strip() for field in fields]
            named = [field for field in header if field]
            if len(set(named)) < len(named):
                raise InputError(f"{name}: the header names a column twice: {', '.join(header)}")
            continue
        if len(fields) != len(header):
            raise InputError(
                f"{name}, line {number}: {len(fields)} fields where the header names {len(header)}; mend the line"
            )
        if fields == first and len(header) > 1:
            repeated += 1
            continue
        rows.append(fields)
        numbers.append(number)
    if repeated:
        _log.info("%s: %d lines that repeat the header are left out", name, repeated)
    kept = kept_columns(name, header, rows)
    return Table(name, {key: [row[i] for row in rows] for i, key in kept.items()}, numbers)


def kept_columns(name: str, header: list[str], rows: list[list[str]]) -> dict[int, str]:
    """Returns the names of the fields that are columns of the table, by their position.

    A field without a name that is empty or numbers the rows is left out.

    Raises:
      InputError: several fields without a name are columns.
    """
    kept: dict[int, str] = {}
    for i, key in enumerate(header):
        if _UNNAMED.fullmatch(key) and len(header) > 1 and is_row_number(row[i] for row in rows):
            continue
        if key in kept.values():
            raise InputError(f"{name}: the header has several columns without a name; name them")
        kept[i] = key
    return kept


def is_row_number(values: Iterable[str]) -> bool:
    """Returns whether fields are all empty, or all numbers."""
    found = list(values)
    return not any(found) or all(value.isdecimal() for value in found)


def parse_lists(table: Table) -> Table:
    """Parses the columns whose values are lists or objects that were written as text."""
    columns = {}
    for name, values in table.columns.items():
        if next((value for value in values if value.strip()), "").lstrip()[:1] not in tuple("[{"):
            continue
        try:
            columns[name] = [parse_literal(value) if value.strip() else None for value in values]
        except ValueError:
            continue
    if columns:
        _log.info(
            "%s: lists are written as text in %s; they are read as lists", table.name, ", ".join(map(repr, columns))
        )
    return table.with_columns(columns)
