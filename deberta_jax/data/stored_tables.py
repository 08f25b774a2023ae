"""Keeps tables that are larger than memory in files, and reads their columns in blocks of consecutive rows.

A file of such a table is parsed once, in parts. Each part is a block: one JSON list for each column and one for the
numbers of the lines, in UTF-8, one behind the other in ``values``. ``spans.npy`` says where they are;
``table.json`` has the names of the columns and the number of rows of each block.
"""

import base64
import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deberta_jax import storage
from deberta_jax.data.columns import Blocks
from deberta_jax.data.files import COMPRESSED, ending, matching_files
from deberta_jax.data.hub_datasets import digest, is_dataset
from deberta_jax.data.streaming import read_parts
from deberta_jax.data.table import Table
from deberta_jax.data.tables import Reading, checked, read_table
from deberta_jax.errors import InputError

_log = logging.getLogger(__name__)

LARGE_TABLE = 64 << 20
"""Files of at most so many bytes in all are read into memory, where they take up to 30 times as much."""

_COMPRESSED = 4
"""About how many times smaller a compressed file is, and parquet."""

_READ_WHOLE = 256 << 20
"""A file up to this size is read into memory if its later rows are written otherwise than its first ones."""

_STREAMED = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_VALUES, _SPANS, _TABLE = "values", "spans.npy", "table.json"
_MOST_SPANS = 1 << 24
_FORM = 1
_BYTES, _OTHER = "\0bytes", "\0other"


@dataclasses.dataclass(frozen=True)
class OtherValue:
    """Stands for a value of a type that JSON does not have, such as a date: it has the same text.

    Attributes:
      text: ``str`` of the value.
    """

    text: str

    def __str__(self) -> str:
        return self.text


class TableStore:
    """Reads files as ``read_table`` does, and keeps large ones in the cache, so that they take no memory.

    A file of another form than csv, tsv, lines of JSON and parquet is read into memory whatever its size. So are all
    files where nothing can be kept, which is logged.

    Args:
      directory: the directory of the cache; None: there is none.
    """

    def __init__(self, directory: Path | None):
        self.directory = directory
        self.digests: dict[str, str] = {}
        """Digest of each file that was read through the cache, as of ``hub_datasets.digest``."""

    def keeps(self, pattern: str) -> bool:
        """Returns whether files are large enough to be kept: those that match a path or pattern, all together."""
        if self.directory is None or pattern == "-" or is_dataset(pattern):
            return False
        sizes = {path: storage.size_of(path) for path in matching_files(pattern)}
        packed = (*COMPRESSED, ".parquet")
        return sum(size * (_COMPRESSED if path.endswith(packed) else 1) for path, size in sizes.items()) > LARGE_TABLE

    def read(self, path: str, reading: Reading) -> Table:
        """Reads a file. Raises InputError as ``read_table``."""
        kind = ending(path)
        if self.directory is None or kind not in _STREAMED or is_dataset(path) or not storage.size_of(path):
            return read_table(path, reading=reading)
        self.digests[path] = digest(path)
        identity = {"table": _FORM, "file": self.digests[path], "kind": kind, "delimiter": reading.delimiter}
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        entry = storage.CacheEntry(self.directory / "tables" / key)
        found = entry.read(lambda directory, _: _read(directory, path))
        if found is not None:
            return found
        _log.info("%s: is large; its rows are kept in %s", path, self.directory / "tables")
        try:
            with entry.making() as stage:
                _write(stage, path, reading)
        except OSError as error:
            _log.warning("%s: is read into memory, for it cannot be kept: %s", path, storage.explain(error))
            return read_table(path, reading=reading)
        except InputError as error:
            if storage.size_of(path) > _READ_WHOLE:
                raise
            _log.info("%s: cannot be read in parts (%s); it is read into memory", path, error)
            return read_table(path, reading=reading)
        found = entry.read(lambda directory, _: _read(directory, path))
        return read_table(path, reading=reading) if found is None else found


def _write(directory: Path, path: str, reading: Reading) -> None:
    """Writes the rows of a file as the module says. Raises OSError, or InputError as ``read_table``."""
    columns: dict[str, int] = {}
    rows: list[int] = []
    blocks: list[dict[int, tuple[int, int]]] = []
    class_names: dict[str, tuple[str, ...]] = {}
    with storage.writing(directory / _VALUES) as file:
        for part in read_parts(path, reading):
            table = part.table()
            # The numbers of the lines are column 0.
            spans = {0: _append(file, list(table.lines))}
            for name, values in table.columns.items():
                spans[columns.setdefault(name, len(columns) + 1)] = _append(file, values)
            class_names |= table.class_names
            rows.append(len(table))
            blocks.append(spans)
            if len(columns) * len(blocks) > _MOST_SPANS:
                raise InputError(f"{path}: its rows have {len(columns)} different keys; give all rows the same keys")
    # A column that a block lacks has the span (0, 0).
    array = np.zeros((len(blocks), len(columns) + 1, 2), np.int64)
    for block, spans in enumerate(blocks):
        for column, span in spans.items():
            array[block, column] = span
    with storage.writing(directory / _SPANS) as file:
        np.save(file, array)
    record = {"columns": list(columns), "rows": rows, "class_names": class_names}
    storage.write_text(directory / _TABLE, json.dumps(record))


def _append(file: BinaryIO, values: Sequence[Any]) -> tuple[int, int]:
    """Writes a list. Returns its place and its number of bytes."""
    # A lone surrogate, which a literal in a csv file may have, is no UTF-8.
    content = json.dumps(list(values), ensure_ascii=False, default=_tagged).encode("utf-8", "surrogatepass")
    start = file.tell()
    file.write(content)
    return start, len(content)


def _tagged(value: Any) -> dict[str, str]:
    """Returns an object that stands for a value that JSON does not have."""
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    return {_OTHER: str(value)}


def _untagged(value: dict[str, Any]) -> Any:
    """Returns the value that an object stands for; any other object as it is."""
    if len(value) != 1:
        return value
    ((tag, content),) = value.items()
    return base64.b64decode(content) if tag == _BYTES else OtherValue(content) if tag == _OTHER else value


def _read(directory: Path, path: str) -> Table:
    """Returns the table in a directory, whose name for messages is ``path``. Raises InputError for another form."""
    fields = {"columns": list, "rows": list, "class_names": dict}
    record = storage.read_record(directory / _TABLE, fields, storage.LARGE)
    spans = storage.mapped_npy(directory / _SPANS)
    rows, file = record["rows"], directory / _VALUES
    possible = spans.shape == (len(rows), len(record["columns"]) + 1, 2) and spans.dtype == np.int64
    if not possible or not all(type(count) is int and count > 0 for count in rows):
        raise InputError(f"{directory}: its files do not belong together")
    starts = [0, *itertools.accumulate(rows)]

    def column(number: int) -> Blocks:
        def read(block: int) -> list[Any]:
            start, size = spans[block, number].tolist()
            values = _values(file, start, size) if size else [None] * rows[block]
            if len(values) != rows[block]:
                raise InputError(f"{directory}: is damaged; delete it")
            return values

        return Blocks(starts, read)

    columns = {name: column(number) for number, name in enumerate(record["columns"], 1)}
    class_names = {name: tuple(names) for name, names in record["class_names"].items()}
    return checked(Table(path, columns, column(0), class_names=class_names))


def _values(file: Path, start: int, size: int) -> list[Any]:
    """Returns a list that ``_append`` wrote."""
    content = storage.read_range(file, start, size)
    hook = _untagged if b"\\u0000" in content else None  # JSON writes the NUL of a tag so
    return json.loads(content.decode("utf-8", "surrogatepass"), object_hook=hook)
