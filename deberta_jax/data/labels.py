"""What the label column means: which problem it poses, and the id of each label."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from deberta_jax.data.tables import Table
from deberta_jax.errors import InputError

REGRESSION, SINGLE_LABEL = "regression", "single_label_classification"

# More whole numbers than this are a quantity to predict, not names of classes.
_MOST_NUMBERED_CLASSES = 50


@dataclasses.dataclass(frozen=True)
class LabelSpec:
    """``problem_type`` as in ``config.json``; ``names`` in the order of the ids (one name for regression)."""

    problem_type: str
    names: tuple[str, ...]


def discover_labels(table: Table, column: str) -> LabelSpec:
    """Reads the problem off the column: numbers that are not all whole make a regression, anything else classes.

    Classes are sorted, as numbers where all of them are whole numbers.

    Raises:
      InputError: a missing value, the same in every row, or more classes than half the rows.
    """
    values = [_text(table, column, line, value) for line, value in _rows(table, column)]
    numbers = [_number(value) for value in values]
    numeric = all(number is not None for number in numbers)
    whole = numeric and all(float(number).is_integer() for number in numbers if number is not None)
    names = sorted(set(values), key=(lambda v: (float(v), v)) if whole else (lambda v: (0.0, v)))
    if len(names) < 2:
        raise InputError(
            f"{table.name}: every row of {column!r} is {names[0]!r}; there must be two different labels or more"
        )
    if numeric and (not whole or len(names) > _MOST_NUMBERED_CLASSES):
        return LabelSpec(REGRESSION, ("LABEL_0",))
    if len(names) > max(2, len(values) // 2):
        raise InputError(
            f"{table.name}: {column!r} has {len(names)} different labels in {len(values)} rows; is it the label column?"
        )
    return LabelSpec(SINGLE_LABEL, tuple(names))


def encode_labels(table: Table, column: str, spec: LabelSpec) -> np.ndarray:
    """Label ids, int32 [n], or for a regression float32 [n].

    Raises:
      InputError: a label that ``spec`` does not have, or a value that is no finite number; with the line.
    """
    if spec.problem_type == REGRESSION:
        numbers = []
        for line, value in _rows(table, column):
            number = _number(_text(table, column, line, value))
            if number is None or not math.isfinite(number):
                raise InputError(f"{table.name}, line {line}: {column!r} is {value!r}; this model predicts a number")
            numbers.append(number)
        return np.asarray(numbers, np.float32)
    ids = {name: i for i, name in enumerate(spec.names)}
    encoded = []
    for line, value in _rows(table, column):
        text = _text(table, column, line, value)
        if text not in ids:
            known = _shorten(spec.names)
            raise InputError(f"{table.name}, line {line}: unknown label {text!r} in {column!r}; known labels: {known}")
        encoded.append(ids[text])
    return np.asarray(encoded, np.int32)


def _rows(table: Table, column: str):
    return zip(table.lines, table.column(column), strict=True)


def _text(table: Table, column: str, line: int, value: Any) -> str:
    if value is None or isinstance(value, (list, dict)) or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{table.name}, line {line}: {column!r} is {value!r}; a label is needed")
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).strip()


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _shorten(names: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
