"""What the label column means: which problem it poses, and the id of each label."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from deberta_jax.data.tables import Table
from deberta_jax.errors import InputError

_log = logging.getLogger(__name__)

REGRESSION, SINGLE_LABEL, MULTI_LABEL = "regression", "single_label_classification", "multi_label_classification"

# More whole numbers than this are a quantity to predict, not names of classes.
_MOST_NUMBERED_CLASSES = 50


@dataclasses.dataclass(frozen=True)
class LabelSpec:
    """``problem_type`` as in ``config.json``; ``names`` in the order of the ids (one name for regression)."""

    problem_type: str
    names: tuple[str, ...]


class LabelIds:
    """Ids of labels by their names. A name that is a label's but for case is that label's: the released checkpoints
    shout ENTAILMENT where the task's files say entailment."""

    def __init__(self, names: Sequence[str]):
        folded = {name.casefold(): i for i, name in enumerate(names)}
        self.names, self.exact = tuple(names), {name: i for i, name in enumerate(names)}
        self.folded = folded if len(folded) == len(names) else {}
        self.others: dict[str, str] = {}

    def find(self, name: str) -> int | None:
        i = self.exact.get(name)
        if i is None and (i := self.folded.get(name.casefold())) is not None:
            self.others[name] = self.names[i]
        return i

    def tell(self, where: str) -> None:
        """Logs the names found so far that are labels but for case."""
        if self.others:
            pairs = ", ".join(f"{ours} as {theirs}" for ours, theirs in sorted(self.others.items()))
            _log.info("%s: labels are read as the model's: %s", where, pairs)


def same_labels(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """In any order, and in upper or lower case where that leaves them distinct."""
    a, b = ({name.casefold() for name in names} for names in (ours, theirs))
    return sorted(ours) == sorted(theirs) or (a == b and len(a) == len(ours) == len(theirs))


def discover_labels(table: Table, column: str) -> LabelSpec:
    """Reads the problem off the column: numbers that are not all whole make a regression, lists of names several labels
    a text, anything else classes.

    Classes are sorted, as numbers where all of them are whole numbers.

    Raises:
      InputError: a missing value, the same in every row, or more classes than half the rows.
    """
    if any(isinstance(value, list) for value in table.column(column)):
        found = {name for row in range(len(table)) for name in _names(table, column, row)}
        if not found:
            raise InputError(f"{table.name}: {column!r} names no label in any row")
        return LabelSpec(MULTI_LABEL, tuple(sorted(found)))
    values = [_text(table, column, row) for row in range(len(table))]
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


def encode_labels(table: Table, columns: Sequence[str], spec: LabelSpec) -> np.ndarray:
    """Label ids, int32 [n]; for a regression float32 [n]; for several labels a text float32 [n, C] of 0 and 1, from one
    column of lists of names or from a column of 0 and 1 a label.

    Raises:
      InputError: a label that ``spec`` does not have, or a value that is no finite number; with the line.
    """
    if spec.problem_type == MULTI_LABEL:
        return _several(table, columns, spec)
    (column,) = columns
    if spec.problem_type == REGRESSION:
        numbers = [_number(_text(table, column, row)) for row in range(len(table))]
        for row, number in enumerate(numbers):
            if number is None or not math.isfinite(number):
                value = table.column(column)[row]
                raise InputError(f"{table.where(row)}: {column!r} is {value!r}; this model predicts a number")
        return np.asarray(numbers, np.float32)
    ids = LabelIds(spec.names)
    texts = [_text(table, column, row) for row in range(len(table))]
    out = np.asarray([_id(table, column, row, ids, text) for row, text in enumerate(texts)], np.int32)
    ids.tell(table.name)
    return out


def _several(table: Table, columns: Sequence[str], spec: LabelSpec) -> np.ndarray:
    out = np.zeros((len(table), len(spec.names)), np.float32)
    ids = LabelIds(spec.names)
    if len(columns) == 1:
        for row in range(len(table)):
            for name in _names(table, columns[0], row):
                out[row, _id(table, columns[0], row, ids, name)] = 1
        ids.tell(table.name)
        return out
    for column in columns:
        for row in range(len(table)):
            text = _text(table, column, row)
            if _number(text) not in (0, 1) and text not in ("true", "false"):
                raise InputError(f"{table.where(row)}: {column!r} is {text!r}; several label columns hold 0 or 1")
            out[row, _id(table, column, row, ids, column)] = text == "true" or _number(text) == 1
    ids.tell(table.name)
    return out


def _id(table: Table, column: str, row: int, ids: LabelIds, name: str) -> int:
    found = ids.find(name)
    if found is None:
        known = shorten(ids.names)
        raise InputError(f"{table.where(row)}: unknown label {name!r} in {column!r}; known labels: {known}")
    return found


def _names(table: Table, column: str, row: int) -> list[str]:
    value = table.column(column)[row]
    if not isinstance(value, list):
        raise InputError(f"{table.where(row)}: {column!r} is {value!r}; a list of labels is needed")
    return [str(name) for name in value]


def _text(table: Table, column: str, row: int) -> str:
    value: Any = table.column(column)[row]
    if value is None or isinstance(value, (list, dict)) or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{table.where(row)}: {column!r} is {value!r}; a label is needed")
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).strip()


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def shorten(names: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
