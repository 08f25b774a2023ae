"""Writes answers, which are lines of JSON, as csv or parquet."""

import csv
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from deberta_jax.errors import InputError
from deberta_jax.storage.resumable import Finish

_ROWS = 4096
_OTHER_FORMATS = (".tsv", ".gz", ".zst", ".zip")


def answer_format(output: str) -> Finish | None:
    """Returns the function that writes answers in the format that a file's ending names; None for lines of JSON.

    Raises:
      InputError: the ending is that of a format that is not written, or pyarrow, which parquet needs, is missing.
    """
    kind = Path(output).suffix.lower()
    if kind in _OTHER_FORMATS:
        raise InputError(f"--output {output}: {kind} is not written; give .jsonl, .csv or .parquet")
    if kind == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401  # answers that cannot be written need not be computed
        except ImportError:
            raise InputError(f"--output {output}: parquet needs pyarrow; pip install 'deberta_jax[parquet]'") from None
        return _write_parquet
    return _write_csv if kind == ".csv" else None


def _answers(lines: BinaryIO) -> Iterator[dict[str, Any]]:
    lines.seek(0)
    return map(json.loads, lines)


def _columns(lines: BinaryIO) -> list[str]:
    """Returns the names of the values of all answers, in order of appearance."""
    return list(dict.fromkeys(name for answer in _answers(lines) for name in answer))


def _write_csv(lines: BinaryIO, out: BinaryIO) -> None:
    """Writes a csv with a column for each name. Lists and objects are JSON in a field; null is an empty field."""
    columns = _columns(lines)
    if not columns:
        return
    text = io.TextIOWrapper(out, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for answer in _answers(lines):
        writer.writerow({name: _field(value) for name, value in answer.items()})
    text.detach()


def _field(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict | bool) else value


def _write_parquet(lines: BinaryIO, out: BinaryIO) -> None:
    """Writes parquet with a column for each name, and objects as structs.

    A column whose values have no common type, such as numbers and texts, holds their JSON.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    types: dict[str, Any] = {name: pa.null() for name in _columns(lines)}
    for group in _groups(_answers(lines)):
        for name, known in types.items():
            if known is not None:
                types[name] = _common_type(known, [answer.get(name) for answer in group])
    schema = pa.schema([(name, kind or pa.string()) for name, kind in types.items()])
    with pq.ParquetWriter(out, schema) as writer:
        for group in _groups(_answers(lines)):
            arrays = []
            for name, kind in types.items():
                values = [answer.get(name) for answer in group]
                if kind is None:
                    values = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
                arrays.append(pa.array(values, kind or pa.string()))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _common_type(known: Any, values: list[Any]) -> Any:
    """Returns the type of pyarrow for values and for those before, whose type is ``known``; None if there is none."""
    import pyarrow as pa

    try:
        schemas = [pa.schema([("values", kind)]) for kind in (known, pa.array(values).type)]
        found = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return None
    return None if _has_empty_struct(found) else found


def _has_empty_struct(kind: Any) -> bool:
    """Returns whether a type has an object without fields, which parquet does not store."""
    fields = [kind.field(i).type for i in range(kind.num_fields)]
    return (str(kind).startswith("struct") and not fields) or any(map(_has_empty_struct, fields))


def _groups(answers: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while group := list(itertools.islice(answers, _ROWS)):
        yield group
