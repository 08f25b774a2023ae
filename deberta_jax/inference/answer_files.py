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


def answer_format(output: str) -> Finish | None:
    """Returns the function that writes answers in the format that a file's ending names; None for lines of JSON.

    Raises:
      InputError: pyarrow, which parquet needs, is missing.
    """
    kind = Path(output).suffix.lower()
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
    text = io.TextIOWrapper(out, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
    writer = csv.DictWriter(text, _columns(lines), lineterminator="\n")
    writer.writeheader()
    for answer in _answers(lines):
        writer.writerow({name: _field(value) for name, value in answer.items()})
    text.detach()


def _field(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict | bool) else value


def _write_parquet(lines: BinaryIO, out: BinaryIO) -> None:
    """Writes parquet with a column for each name, and objects as structs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = _columns(lines)
    schemas = [pa.schema([(name, pa.null()) for name in names])]
    for group in _groups(_answers(lines)):
        schemas = [pa.unify_schemas([*schemas, pa.Table.from_pylist(group).schema], promote_options="permissive")]
    with pq.ParquetWriter(out, schemas[0]) as writer:
        for group in _groups(_answers(lines)):
            writer.write_table(pa.Table.from_pylist(group, schemas[0]))


def _groups(answers: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while group := list(itertools.islice(answers, _ROWS)):
        yield group
