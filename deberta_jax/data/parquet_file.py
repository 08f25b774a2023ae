"""Reads parquet files, and the names of classes that ``datasets`` stores in their schema."""

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from deberta_jax import storage
from deberta_jax.data.files import packed
from deberta_jax.data.reading import blocks_of, check_expansion
from deberta_jax.data.table import Table, reason
from deberta_jax.errors import InputError, brief

# A file may say in few bytes that a value occurs a billion times. Real ones have more than a byte for each value.
_FREE_VALUES = 1 << 22
_MOST_VALUES_PER_BYTE = 16
_BATCH = 128
# Programs that write parquet keep a dictionary of values only up to 1 MiB. One value of a longer dictionary, which each
# row may repeat, may be as long as it is.
_LONG_DICTIONARY = 1 << 20


def read_parquet(path: str) -> Table:
    """Reads a parquet file. Values have the Python types of pyarrow's ``to_pydict``.

    Args:
      path: the file, which may be in a zip.

    Raises:
      InputError: the file cannot be read, is not parquet, has two columns of one name, or is far larger in memory than
        on disk; or pyarrow is missing.
    """
    with _opened(path) as (file, size), parquet_errors(path):
        return table_of_arrow(path, _read(path, file, size))


def read_parquet_parts(path: str, rows: int) -> Iterator[Table]:
    """Yields the rows of a parquet file in tables of at most ``rows`` rows.

    Arguments and errors are those of ``read_parquet``.
    """
    with _opened(path) as (file, size):
        import pyarrow as pa

        first = 0
        for batch in _batches(path, file, rows):
            with parquet_errors(path):
                check_expansion(path, batch.nbytes, size)
                table = table_of_arrow(path, pa.Table.from_batches([batch], file.schema_arrow), first + 1)
            yield table
            first += len(table)


def parquet_rows(path: str) -> int:
    """Returns the number of rows of a parquet file. Raises InputError as ``read_parquet``."""
    with _opened(path) as (file, _):
        return int(file.metadata.num_rows)


def _batches(path: str, file: Any, rows: int) -> Iterator[Any]:
    """Yields batches of a parquet file with ``rows`` rows, or fewer at its end."""
    with parquet_errors(path):
        yield from file.iter_batches(rows_at_once(file.metadata, rows))


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, int]]:
    """Yields pyarrow's ParquetFile, whose counts are checked, and its size in bytes."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f"{path}: parquet needs pyarrow; pip install 'deberta_jax[parquet]'") from None
    with packed(path) as (stream, in_zip):
        if in_zip or storage.is_stream(path):
            stream = io.BytesIO(b"".join(blocks_of(path, stream, None)))
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        with parquet_errors(path):
            file = pq.ParquetFile(stream)
            check_counts(path, file.metadata, size)
        yield file, size


@contextmanager
def parquet_errors(path: str) -> Iterator[None]:
    """Converts the exceptions of pyarrow in the block to InputError."""
    import pyarrow as pa

    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, NotImplementedError) as error:
        raise InputError(f"{path}: not readable as parquet ({brief(reason(error), 200)})") from None


def check_counts(path: str, metadata: Any, size: int) -> None:
    """Checks that a file does not say that it has far more values, or bytes of values, than it could have.

    Args:
      path: the file, for messages.
      metadata: what pyarrow read at the end of the file.
      size: number of bytes of the file.

    Raises:
      InputError: it has.
    """
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    values = sum(column.num_values for column in columns)
    if values > max(_FREE_VALUES, _MOST_VALUES_PER_BYTE * size):
        raise InputError(
            f"{path}: {size:,} bytes hold {values:,} values, unlike any text; write the file anew as .jsonl"
        )
    check_expansion(path, sum(column.total_uncompressed_size for column in columns), size)


def rows_at_once(metadata: Any, most: int) -> int:
    """Returns how many rows to read at once: fewer than ``most`` if a row may have a value of many megabytes.

    Args:
      metadata: what pyarrow read at the end of the file.
      most: the number of rows of other files.
    """
    longest = 1
    for group in range(metadata.num_row_groups):
        columns = metadata.row_group(group)
        for column in map(columns.column, range(columns.num_columns)):
            if column.dictionary_page_offset is not None and column.total_compressed_size > 0:
                stored = max(column.data_page_offset - column.dictionary_page_offset, 0)
                longest = max(longest, stored * column.total_uncompressed_size // column.total_compressed_size)
    return most if longest <= _LONG_DICTIONARY else max(1, (1 << 27) // longest)


def _read(path: str, file: Any, size: int) -> Any:
    """Returns the table of a parquet file, read in parts, so that one that fills the memory is noticed in time."""
    import pyarrow as pa

    parts, held = [], 0
    for batch in file.iter_batches(rows_at_once(file.metadata, _BATCH)):
        held += batch.nbytes
        check_expansion(path, held, size)
        parts.append(batch)
    return pa.Table.from_batches(parts, file.schema_arrow)


def table_of_arrow(name: str, table: Any, first: int = 1) -> Table:
    """Converts a table of pyarrow, whose rows are numbered from ``first`` on.

    Raises:
      InputError: two columns have one name.
    """
    names = table.column_names
    if len(set(names)) < len(names):
        raise InputError(f"{name}: the file names a column twice: {', '.join(names)}")
    columns = table.to_pydict()
    found = class_names(table.schema.metadata or {})
    return Table(
        name,
        columns,
        range(first, first + table.num_rows),
        class_names={k: v for k, v in found.items() if k in columns},
    )


def class_names(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Returns the class names of columns, in the order of their numbers, from the metadata that ``datasets`` writes.

    Metadata that cannot be read gives {}.
    """
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        items = features.items()
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {column: names for column, feature in items if (names := names_of(feature))}


def names_of(feature: Any) -> tuple[str, ...]:
    """Returns the class names of a ClassLabel, or of a list of ClassLabels; () for any other feature."""
    while True:
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"):
            feature = feature.get("feature")
        else:
            break
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return ()
    names = feature.get("names")
    return tuple(map(str, names)) if isinstance(names, list) else ()
