"""Reads files of labelled text into tables: csv, tsv, json, jsonl, parquet, CoNLL."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from deberta_jax import storage
from deberta_jax.data.conll import read_conll, read_conllu
from deberta_jax.data.delimited import check_delimiter, read_csv, read_tsv
from deberta_jax.data.files import COMPRESSED, ending, matching_files, members, read_content
from deberta_jax.data.hub_datasets import is_dataset, read_dataset
from deberta_jax.data.json_files import read_json_table, read_jsonl_table
from deberta_jax.data.parquet_file import read_parquet
from deberta_jax.data.reading import blocks_of, read_text
from deberta_jax.data.table import Table, join_tables
from deberta_jax.errors import InputError

Reader = Callable[[str, str], Table]
"""Makes a table of the name and the text of a file."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """Says how files are read."""

    delimiter: str = ""
    """The character between the fields of csv and tsv; found in the file if it is empty."""
    words: bool = False
    """Whether words with tags are expected: then a ``.txt`` file has one word per line."""


_CONLL = (".conll", ".bio", ".iob", ".iob2")
_READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl_table,
    ".ndjson": read_jsonl_table,
    ".json": read_json_table,
    **dict.fromkeys(_CONLL, read_conll),
    ".conllu": read_conllu,
}
ENDINGS = (".csv", ".tsv", *_READERS, ".parquet")


def read_tables(
    paths: Sequence[str], reading: Reading = Reading(), read: Callable[[str, Reading], Table] | None = None
) -> Table:
    """Reads files, or all that match patterns such as ``part-*.jsonl``, into one table.

    It has the columns of all files; a row has None in a column that its file lacks.

    Args:
      paths: the files and patterns.
      reading: how files are read.
      read: reads a file in place of ``read_table``.

    Raises:
      InputError: as ``read_table``.
    """
    read = read or (lambda file, reading: read_table(file, reading=reading))
    return join_tables([read(file, reading) for path in paths for file in matching_files(path)])


def read_table(path: str | Path, reader: Reader | None = None, reading: Reading = Reading()) -> Table:
    """Reads a file into a table. The suffix decides the format:

    - ``.csv``, ``.tsv``: the first line names the columns.
    - ``.json``, ``.jsonl``, ``.ndjson``: an array of objects, or one object per line; ``.json`` also SQuAD 1 or 2, with
      one row per question.
    - ``.parquet``.
    - ``.conll``, ``.bio``, ``.iob``, ``.iob2``, and ``.txt`` if words are expected: one word per line with its tag in
      the last column, and blank lines between sentences; columns ``tokens`` and ``tags``.
    - ``.conllu``: ``tokens`` and the fields of CoNLL-U.

    All but parquet may be compressed (``.gz``, ``.zst``). ``hub:NAME/CONFIG@SPLIT`` and directories of ``save_to_disk``
    are read with ``datasets``. ``-`` is jsonl from standard input.

    Args:
      path: the file.
      reader: reads the text of the file, whatever its suffix.
      reading: how files are read.

    Raises:
      InputError: the file does not exist, is empty, is not UTF-8, has an unknown suffix, or has a row that does not fit
        the others; with file and line.
    """
    if is_dataset(str(path)):
        return checked(read_dataset(str(path)))
    if str(path) == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed; give a file")
        blocks = blocks_of("standard input", sys.stdin.buffer, None)
        given = _reader("standard input", ".jsonl", reading)
        assert given is not None
        return checked(given("standard input", read_text("standard input", blocks, document=False)))
    if Path(path).is_dir():
        raise InputError(f"{path}: cannot be read (is a directory; give its files)")
    kind = ending(str(path))
    if not kind and storage.is_stream(path):
        kind = ".jsonl"
    if kind == ".zip":
        raise InputError(
            f"{path}: is an archive; name a file in it, as in {path}/{[*members(storage.as_path(path)), 'FILE'][0]}"
        )
    reader = reader or _reader(str(path), kind, reading)
    if reader is None:
        return checked(read_parquet(str(path)))
    return checked(reader(str(path), read_content(str(path), document=kind == ".json")))


def checked(table: Table) -> Table:
    """Returns a table. Raises InputError if it has no rows."""
    if not len(table):
        raise InputError(f"{table.name}: no rows; the file is empty")
    return table


def _reader(name: str, kind: str, reading: Reading) -> Reader | None:
    """Returns the reader of a file with the suffix ``kind``, or None for parquet. Raises InputError for others."""
    if kind in (".csv", ".tsv"):
        delimiter, read = check_delimiter(reading.delimiter), read_csv if kind == ".csv" else read_tsv
        return lambda name, text: read(name, text, delimiter)
    if reading.delimiter:
        raise InputError(f"--delimiter: is for csv and tsv; {name} is another kind of file")
    if kind == ".txt" and reading.words:
        return read_conll
    if kind == ".parquet" and Path(name).suffix.lower() not in COMPRESSED:
        return None
    if kind not in _READERS:
        more = "; .txt with --task token-classification" if kind == ".txt" else ""
        raise InputError(f"{name}: ending {kind!r} is not known; expected {', '.join(ENDINGS)}{more}")
    return _READERS[kind]
