"""Reads parquet files, and the names of classes that ``datasets`` stores in their schema."""

import io
import json
from collections.abc import Mapping
from typing import Any

from deberta_jax.data.table import Table, reason
from deberta_jax.errors import InputError


def read_parquet(name: str, content: bytes) -> Table:
    """Reads a parquet file. Values have the Python types of pyarrow's ``to_pydict``.

    Args:
      name: the name of the file, for messages.
      content: its bytes.

    Raises:
      InputError: the file is not parquet, has two columns of one name, or pyarrow is missing.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f"{name}: parquet needs pyarrow; pip install 'deberta_jax[parquet]'") from None
    try:
        return table_of_arrow(name, pq.ParquetFile(io.BytesIO(content)).read())
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, NotImplementedError) as error:
        raise InputError(f"{name}: not readable as parquet ({reason(error)})") from None


def table_of_arrow(name: str, table: Any) -> Table:
    """Converts a table of pyarrow. Raises InputError for two columns of one name."""
    names = table.column_names
    if len(set(names)) < len(names):
        raise InputError(f"{name}: the file names a column twice: {', '.join(names)}")
    columns = table.to_pydict()
    found = class_names(table.schema.metadata or {})
    return Table(
        name, columns, range(1, 1 + table.num_rows), class_names={k: v for k, v in found.items() if k in columns}
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
