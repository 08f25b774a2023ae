"""Reads files of any length as a sequence of small tables, so that memory does not grow with the files.

Lines of JSON and parquet are read in parts. So is csv and tsv after its first 4 million characters, which decide how
it is written. Other formats are read whole and then divided.
"""

import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deberta_jax import storage
from deberta_jax.data.delimited import check_delimiter, read_csv, read_tsv
from deberta_jax.data.delimited_parts import form_of
from deberta_jax.data.files import COMPRESSED, ending, found, matching_files, opened_text
from deberta_jax.data.hub_datasets import is_dataset
from deberta_jax.data.json_files import is_object_line, read_jsonl_table, table_of_lines
from deberta_jax.data.parquet_file import parquet_rows, read_parquet_parts
from deberta_jax.data.reading import BLOCK, blocks_of, text_parts
from deberta_jax.data.table import Table
from deberta_jax.data.tables import Reading, checked, read_table
from deberta_jax.errors import InputError

STANDARD_INPUT = "standard input"

_SAMPLE = 1 << 22
"""Number of characters of a csv or tsv file that decide how its fields are written."""

_MOST_CHARACTERS = 1 << 24
"""A part of a file ends after so many characters, however few rows it has."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Holds consecutive rows of a file.

    Attributes:
      rows: the number of rows.
      table: returns them. The rows of a part that is skipped are never parsed.
    """

    rows: int
    table: Callable[[], Table]


def read_parts(pattern: str, reading: Reading, *, rows: int = 2048) -> Iterator[Part]:
    """Yields the rows of a file, or of all files that match a pattern, in parts.

    The division depends on the files and on ``rows`` alone.

    Args:
      pattern: a path or pattern, as for ``read_tables``; ``-`` is jsonl from standard input.
      reading: how files are read.
      rows: the largest number of rows of a part.

    Raises:
      InputError: as ``read_table``; for a row that cannot be read when the table of its part is made.
    """
    for path in matching_files(pattern):
        yield from _parts_of_file(path, reading, rows)


def divided(table: Table, rows: int) -> Iterator[Part]:
    """Yields the parts of a table, of at most ``rows`` rows."""
    for start in range(0, len(table), rows):
        part = range(start, min(start + rows, len(table)))
        yield Part(len(part), lambda part=part: table.select(part))


def estimated_rows(pattern: str) -> int | None:
    """Returns about how many rows files have, from their first lines; None if that takes as long as reading them."""
    total = 0
    for path in [] if pattern == "-" else found(pattern):
        if storage.is_remote(path) or not Path(path).is_file() or ending(path) != Path(path).suffix.lower():
            return None
        if ending(path) == ".parquet":
            total += parquet_rows(path)
        elif ending(path) in (".jsonl", ".ndjson", ".csv", ".tsv"):
            with storage.opened(path) as file:
                begin, size = file.read(BLOCK), file.seek(0, os.SEEK_END)
            unended = len(begin) == size and not begin.endswith(b"\n")
            lines = (begin.count(b"\n") + unended) * size // max(1, len(begin))
            total += max(0, lines - (ending(path) in (".csv", ".tsv")))  # the header is no row
        else:
            return None
    return total or None


def _parts_of_file(path: str, reading: Reading, rows: int) -> Iterator[Part]:
    kind = ending(path)
    stream = path == "-" or (not kind and storage.is_stream(path))
    if path != "-" and (is_dataset(path) or Path(path).is_dir()):
        yield from divided(read_table(path, reading=reading), rows)
    elif (stream or kind in (".jsonl", ".ndjson")) and not reading.delimiter:
        with _text_of(path) as text:
            yield from _json_lines(STANDARD_INPUT if path == "-" else path, text, rows)
    elif kind in (".csv", ".tsv"):
        with _text_of(path) as text:
            yield from _delimited(path, text, kind, check_delimiter(reading.delimiter), rows)
    elif kind == ".parquet" and Path(path).suffix.lower() not in COMPRESSED and not reading.delimiter:
        yield from _parquet(path, rows)
    else:
        yield from divided(read_table(path, reading=reading), rows)


@contextmanager
def _text_of(path: str) -> Iterator[Iterator[str]]:
    """Yields the text of a file in parts. Raises InputError as ``read_content``."""
    if path == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed; give a file")
        yield text_parts(STANDARD_INPUT, blocks_of(STANDARD_INPUT, sys.stdin.buffer, None), document=False)
        return
    with opened_text(path) as parts:
        yield parts


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Yields the lines of a text that is given in parts, with their ends. Only a line feed ends a line."""
    begun: list[str] = []
    for text in texts:
        first, *others = text.split("\n")
        begun.append(first)
        if others:
            yield "".join(begun) + "\n"
            yield from (line + "\n" for line in others[:-1])
            begun = [others[-1]]
    if rest := "".join(begun):
        yield rest


def _json_lines(name: str, texts: Iterator[str], rows: int) -> Iterator[Part]:
    """Yields the parts of a file with one JSON object per line; of one with another form after reading all of it."""
    seen: list[str] = []
    begin = _written(_lines(_recorded(texts, seen)))
    first = [line for _, line in itertools.islice(begin, 2)]
    if len(first) < 2 or not is_object_line(first[0]):
        yield from divided(checked(read_jsonl_table(name, "".join(itertools.chain(seen, texts)))), rows)
        return
    written = _written(_lines(itertools.chain(seen, texts)))
    for part in _grouped(written, rows, lambda numbered: len(numbered[1])):
        yield Part(len(part), lambda part=part: table_of_lines(name, part))


def _recorded(texts: Iterator[str], seen: list[str]) -> Iterator[str]:
    for text in texts:
        seen.append(text)
        yield text


def _written(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yields the number and the text of each line that is not blank."""
    for number, line in enumerate(lines, 1):
        text = line.removeprefix("\ufeff").removesuffix("\n")
        if text.strip():
            yield number, text


def _grouped(items: Iterable[Any], rows: int, size: Callable[[Any], int]) -> Iterator[list[Any]]:
    """Yields lists of at most ``rows`` items, which end once they have ``_MOST_CHARACTERS`` characters."""
    group: list[Any] = []
    characters = 0
    for item in items:
        group.append(item)
        characters += size(item)
        if len(group) == rows or characters >= _MOST_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _delimited(name: str, texts: Iterator[str], kind: str, delimiter: str, rows: int) -> Iterator[Part]:
    """Yields the parts of a csv or tsv file, whose first characters decide how its fields are written."""
    read, usual = (read_csv, ",") if kind == ".csv" else (read_tsv, "\t")
    begin: list[str] = []
    length = 0
    while length < _SAMPLE and (text := next(texts, None)) is not None:
        begin.append(text)
        length += len(text.strip())  # a file may begin with blank lines
    following = next(texts, None)
    sample = "".join(begin)
    if following is None or "\n" not in sample:
        yield from divided(checked(read(name, "".join([sample, following or "", *texts]), delimiter)), rows)
        return
    form = form_of(name, sample, usual, delimiter)
    lines = itertools.islice(_lines(itertools.chain([sample, following], texts)), form.first - 1, None)
    for part in _grouped(form.rows(name, lines), rows, lambda row: sum(map(len, row[1]))):
        yield Part(len(part), lambda part=part: form.table(name, part))


def _parquet(path: str, rows: int) -> Iterator[Part]:
    table = None
    for table in read_parquet_parts(path, rows):
        yield Part(len(table), lambda table=table: table)
    if table is None:
        raise InputError(f"{path}: no rows; the file is empty")
