"""Checks that tokenised examples are possible: before they are trained on, they may have been on a shared disk."""

import dataclasses

import numpy as np

from deberta_jax.data.features import EXAMPLE, SPAN, TOKEN, Features, blocks_of_array, extremes
from deberta_jax.errors import InputError, shown

_NONE = -100  # the label of a token that has none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """Holds what is known of tokenised examples before they are made; by default nothing.

    Attributes:
      vocab_size: number of token ids.
      labels: number of labels; 0: not known.
      rows: number of rows of the table; None: not known.
      max_length: largest number of tokens of a text.
    """

    vocab_size: int = 2**31
    labels: int = 0
    rows: int | None = None
    max_length: int = 2**31


def check_features(features: Features, bounds: Bounds) -> None:
    """Checks dtypes, shapes and values of all fields.

    Raises:
      InputError: a field that no tokenizer and no task within these bounds can have made; the message names it.
    """
    f = features
    _array("ids", f.ids, np.int32, 1, 0, bounds.vocab_size - 1)
    _array("types", f.types, np.int8, 1, 0, 1)
    _array("starts", f.starts, np.int64, 1, 0, len(f.ids))
    lengths = np.diff(f.starts)
    _expect(len(lengths) > 0 and f.starts[0] == 0 and f.starts[-1] == len(f.ids), "starts", "does not fit the ids")
    _expect(int(lengths.min()) >= 0 and int(lengths.max()) <= bounds.max_length, "starts", "has impossible lengths")
    _expect(len(f.types) == len(f.ids), "types", "does not fit the ids")
    _expect(f.level in (EXAMPLE, TOKEN, SPAN), "level", f"is {shown(f.level)}")
    _expect(type(f.choices) is int and f.choices > 0, "choices", f"is {shown(f.choices)}")
    _expect(type(f.cut) is int and 0 <= f.cut <= len(lengths), "cut", f"is {shown(f.cut)}")
    rows = _check_rows(f, len(lengths), bounds.rows)
    for name, width in (("offsets", 2), ("words", None)):
        values = getattr(f, name)
        if values is not None:
            _array(name, values, np.int32, 1 if width is None else 2, -1 if width is None else 0, None)
            _expect(values.shape == ((len(f.ids),) if width is None else (len(f.ids), width)), name, "does not fit")
    if f.labels is not None:
        _check_labels(f, lengths, bounds.labels, rows)


def _check_rows(f: Features, texts: int, rows: int | None) -> int:
    """Checks which row each text belongs to. Returns the number of rows."""
    if f.row is None:
        _expect(f.level == EXAMPLE, "row", "is missing")
        rows = texts // f.choices if rows is None else rows
        _expect(texts == rows * f.choices, "choices", f"{f.choices} of {rows} rows are not {texts} texts")
        return rows
    _array("row", f.row, np.int32, 1, 0, None if rows is None else rows - 1)
    _expect(len(f.row) == texts and f.choices == 1, "row", "does not fit the texts")
    rows = int(f.row[-1]) + 1 if rows is None else rows
    steps = np.diff(f.row, prepend=-1, append=rows)
    _expect(bool((steps >= 0).all() and (steps <= 1).all()), "row", "does not name all rows in order")
    return rows


def _check_labels(f: Features, lengths: np.ndarray, count: int, rows: int) -> None:
    labels = f.labels
    assert labels is not None
    top = count - 1 if count else None
    if f.level == TOKEN:
        _array("labels", labels, np.int32, 1, _NONE, top)
        _expect(labels.shape == f.ids.shape, "labels", "does not fit the ids")
        negative = (bool(((block < 0) & (block != _NONE)).any()) for block in blocks_of_array(labels))
        _expect(not any(negative), "labels", "has a negative label")
    elif f.level == SPAN:
        _array("labels", labels, np.int32, 2, -1, None)
        _expect(labels.shape == (len(lengths), 2), "labels", "does not fit the texts")
        inside = (labels < np.maximum(lengths, 1)[:, None]).all() and (labels[:, 0] <= labels[:, 1]).all()
        _expect(bool(inside), "labels", "has an answer outside its text")
    elif labels.dtype == np.int32:
        _array("labels", labels, np.int32, 1, 0, f.choices - 1 if f.choices > 1 else top)
        _expect(len(labels) == rows, "labels", "does not fit the rows")
    else:
        _array("labels", labels, np.float32, labels.ndim, None, None)
        shapes = ((rows,), (rows, count or labels.shape[-1]))
        _expect(labels.shape in shapes and bool(np.isfinite(labels).all()), "labels", "has impossible numbers")


def _array(name: str, value: object, dtype: type, ndim: int, least: int | None, most: int | None) -> None:
    """Checks an array's dtype, its number of axes, and the range of its values."""
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != ndim or not value.size:
        raise InputError(f"{name} is not an array of {np.dtype(dtype).name} with {ndim} axes")
    if least is None and most is None:
        return
    low, top = extremes(value)
    if least is not None and low < least:
        raise InputError(f"{name} has the value {low}; the least is {least}")
    if most is not None and top > most:
        raise InputError(f"{name} has the value {top}; the most is {most}")


def _expect(right: bool | np.bool_, name: str, what: str) -> None:
    if not right:
        raise InputError(f"{name} {what}")
