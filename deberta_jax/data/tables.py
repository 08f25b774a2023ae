"""Files of labelled text as users have them: csv, tsv and jsonl, read into columns."""

import csv
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

from deberta_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of equal length, in file order; csv and tsv values are str, jsonl values what JSON gives.

    ``lines`` is the line of the file that each row starts at, for messages.
    """

    name: str
    columns: dict[str, list[Any]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str) -> list[Any]:
        """Raises InputError with the columns there are if ``name`` is none of them."""
        if name not in self.columns:
            raise InputError(f"{self.name}: no column {name!r}; its columns are {', '.join(map(repr, self.columns))}")
        return self.columns[name]

    def texts(self, name: str) -> list[str]:
        """A column of text; raises InputError naming the line of a value that is missing or no text."""
        values = self.column(name)
        for line, value in zip(self.lines, values, strict=True):
            if not isinstance(value, str):
                raise InputError(f"{self.name}, line {line}: {name!r} is {value!r}; a text is needed")
        return values


def read_table(path: str | Path) -> Table:
    """Reads ``.csv`` (quoted), ``.tsv`` (tab-separated, quotes are text) or ``.jsonl``; ``-`` is standard input, jsonl.

    The first line of csv and tsv names the columns. Blank lines are skipped.

    Raises:
      InputError: a file that is not there, is empty, is no UTF-8, has another ending, or has a row that does not fit
        the header; the message names file and line.
    """
    if str(path) == "-":
        return _parse("standard input", ".jsonl", sys.stdin.buffer.read())
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return _parse(str(path), path.suffix.lower(), content)


def _parse(name: str, kind: str, content: bytes) -> Table:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None
    if kind == ".jsonl":
        table = _read_jsonl(name, text)
    elif kind == ".tsv":
        # GLUE's files hold unpaired quotation marks: in a tsv a quote is a character like any other.
        table = _read_rows(name, text, csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
    elif kind == ".csv":
        table = _read_rows(name, text, csv.reader(io.StringIO(text), strict=True))
    else:
        raise InputError(f"{name}: ending {kind!r} is not known; expected .csv, .tsv or .jsonl")
    if not len(table):
        raise InputError(f"{name}: no rows; the file is empty")
    return table


def _read_jsonl(name: str, text: str) -> Table:
    rows: list[dict[str, Any]] = []
    lines = []
    # Not splitlines: JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{name}, line {number}: not JSON ({error.msg})") from None
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict):
            raise InputError(f"{name}, line {number}: expected a JSON object, found {type(row).__name__}")
        rows.append(row)
        lines.append(number)
    names = list(dict.fromkeys(key for row in rows for key in row))
    return Table(name, {key: [row.get(key) for row in rows] for key in names}, lines)


def _read_rows(name: str, text: str, reader) -> Table:
    header: list[str] = []
    rows, lines = [], []
    limit = csv.field_size_limit(len(text) + 1)  # the default refuses fields above 128 KiB
    try:
        before = 0
        for row in reader:
            start, before = before + 1, reader.line_num
            if not row:
                continue
            if not header:
                header = row
                if len(set(header)) < len(header):
                    raise InputError(f"{name}: the header names a column twice: {', '.join(header)}")
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{name}, line {start}: {len(row)} fields where the header names {len(header)}; mend the line"
                )
            rows.append(row)
            lines.append(start)
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.line_num}: {error}") from None
    finally:
        csv.field_size_limit(limit)
    return Table(name, {key: [row[i] for row in rows] for i, key in enumerate(header)}, lines)
