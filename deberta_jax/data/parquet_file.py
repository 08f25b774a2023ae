"""Tables of parquet, and the names of classes that the Hugging Face hub keeps in a file's schema."""

import io
import json
from collections.abc import Mapping
from typing import Any

from deberta_jax.data.table import Table, reason
from deberta_jax.errors import InputError


def read_parquet(name: str, content: bytes) -> Table:
    """Reads parquet. Values are what its types mean in Python; ``class_names`` are those in the schema's metadata.

    Raises:
      InputError: content that is no parquet, two columns of one name, or pyarrow missing.
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
    """Makes a table of one of pyarrow's. Raises InputError for two columns of one name."""
    names = table.column_names
    if len(set(names)) < len(names):
        raise InputError(f"{name}: the file names a column twice: {', '.join(names)}")
    columns = table.to_pydict()
    found = class_names(table.schema.metadata or {})
    return Table(
        name, columns, range(1, 1 + table.num_rows), class_names={k: v for k, v in found.items() if k in columns}
    )


def class_names(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Returns the names of the classes of columns, by their numbers, from what ``datasets`` writes into a schema.

    Metadata that cannot be read names nothing.
    """
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        items = features.items()
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {column: names for column, feature in items if (names := names_of(feature))}


def names_of(feature: Any) -> tuple[str, ...]:
    """Returns the names of a ClassLabel, or of a list of them; () for any other feature."""
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
