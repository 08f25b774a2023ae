"""What the label column means: which problem it poses, and the id of each label.

One rule says which label a value names, for every kind of task: see ``label_name``.
"""

import dataclasses
import functools
import logging
import math
import re
import unicodedata
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from deberta_jax.data.table import Table, shown
from deberta_jax.errors import InputError

_log = logging.getLogger(__name__)

REGRESSION, SINGLE_LABEL, MULTI_LABEL = "regression", "single_label_classification", "multi_label_classification"

# More whole numbers than this are a quantity to predict, not names of classes.
_MOST_NUMBERED_CLASSES = 50
# What pandas, Python and databases write for a value that is not there.
_MISSING = frozenset(("", "nan", "NaN", "None", "null", "NULL", "<NA>"))
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_TRUTH = ("false", "true")
SKIP = "mend the row, or leave such rows out with --skip-unlabelled"


@dataclasses.dataclass(frozen=True)
class LabelSpec:
    """``problem_type`` as in ``config.json``; ``names`` in the order of the ids (one name for regression)."""

    problem_type: str
    names: tuple[str, ...]


def label_name(value: Any) -> str | None:
    """Returns the name of the label that a value of a file means; None where it means that there is none.

    Equal numbers are one label, written as integers where they are whole (``1``, ``1.0`` and ``"1.0"`` are ``1``).
    True and False are ``true`` and ``false`` however they are written. Text is composed (NFC), blanks around it do not
    count. None, NaN, empty text and the words that writers leave for a missing value (nan, None, null) are no label.

    Raises:
      ValueError: a list or an object.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (list, tuple, dict, bytes)):
        raise ValueError("no label")
    return _name_of_text(str(value))


@functools.lru_cache(maxsize=1 << 14)
def _name_of_text(text: str) -> str | None:
    text = unicodedata.normalize("NFC", text).strip()
    if text in _MISSING:
        return None
    if text.lower() in _TRUTH:
        return text.lower()
    if not _NUMBER.fullmatch(text) or len(text) > 100:
        return text
    number = Decimal(text)
    if number == number.to_integral_value():
        return str(int(number))
    return f"{number.normalize():f}"


def number_of(value: Any) -> int | None:
    """Returns the whole number that a value of a file is, also as text or as 1.0; None for any other value."""
    try:
        name = label_name(value)
    except ValueError:
        return None
    return int(name) if name is not None and re.fullmatch("-?[0-9]+", name) else None


def generic_names(count: int) -> tuple[str, ...]:
    """Returns LABEL_0, LABEL_1, ...: the names of labels that nobody has named."""
    return tuple(f"LABEL_{i}" for i in range(count))


class LabelIds:
    """Finds the ids of labels.

    A value is a label's if it is its name, else if both are the same label by ``label_name``, else if they differ in
    case alone (the released checkpoints shout ENTAILMENT where the task's files say entailment). 1 and 0 are true and
    false. Of a model whose labels nobody has named (LABEL_0, ...) the ids are names too.
    """

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self.others: dict[str, str] = {}
        self.canonical = [label_name(name) or name for name in names]
        folded = [name.casefold() for name in self.canonical]
        self.exact = dict(zip(names, range(len(names)), strict=True))
        # A way to write the names serves only where it keeps them distinct.
        self.layers = [(str, self._numbered(self.canonical)), (str.casefold, self._numbered(folded))]
        if sorted(folded) == list(_TRUTH):
            self.layers.append((str, self._numbered([str(_TRUTH.index(name)) for name in folded])))
        elif sorted(folded) == ["0", "1"]:
            self.layers.append((str, self._numbered([_TRUTH[int(name)] for name in folded])))
        ids = [str(i) for i in range(len(names))]
        self.unnamed = self.names == generic_names(len(names)) or self.canonical == ids
        if self.names == generic_names(len(names)):
            self.layers.append((str, self._numbered(ids)))
        elif self.canonical == ids:
            self.layers.append((str.upper, self._numbered(generic_names(len(names)))))

    @staticmethod
    def _numbered(keys: Sequence[str]) -> dict[str, int]:
        return {key: i for i, key in enumerate(keys)} if len(set(keys)) == len(keys) else {}

    def find(self, value: Any) -> int | None:
        """Returns the id of the label that a value names, or None. Raises ValueError for a list or an object."""
        if isinstance(value, str) and value in self.exact:
            return self.exact[value]
        name = label_name(value)
        if name is None:  # a model may have a label of the name "None"
            return self.exact.get(str(value).strip())
        for key, ids in self.layers:
            found = ids.get(key(name))
            if found is not None:
                if name != self.canonical[found]:
                    self.others[name] = self.names[found]
                return found
        return None

    def by_number(self, written: Any, number: Any) -> int | None:
        """Returns the number of a label as its id, or None where there is no such id; ``tell`` then names both."""
        if type(number) is not int or not 0 <= number < len(self.names):
            return None
        if str(written) not in (self.names[number], str(number) if self.unnamed else None):
            self.others[str(written)] = self.names[number]
        return number

    def tell(self, where: str) -> None:
        """Logs the values found so far that are written otherwise than the labels' names."""
        if self.others:
            pairs = ", ".join(f"{ours} as {theirs}" for ours, theirs in sorted(self.others.items()))
            _log.info("%s: labels are read as the model's: %s", where, pairs)


def same_labels(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """Returns whether these are the same labels, in any order and however they are written; ids are no names."""
    if len(ours) != len(theirs) or tuple(ours) == generic_names(len(ours)) != tuple(theirs):
        return False
    ids = LabelIds(ours)
    found = {ids.find(name) for name in theirs}
    return None not in found and len(found) == len(ours)


def value_of(table: Table, column: str, row: int) -> Any:
    """Returns a value of a label column; numbers of which the file names the classes as those names, -1 as None."""
    value = table.column(column)[row]
    names = table.class_names.get(column)
    if names is None:
        return value

    def named(one: Any) -> Any:
        if type(one) is not int:
            return one
        if not -1 <= one < len(names):
            raise InputError(f"{table.where(row)}: {column!r} is {one}, but the file names {len(names)} classes")
        return None if one == -1 else names[one]

    return [named(one) for one in value] if isinstance(value, list) else named(value)


def discover_labels(table: Table, column: str) -> LabelSpec:
    """Reads the problem off the column: numbers that are not all whole make a regression, lists of names several labels
    a text, anything else classes.

    Classes are those that the file names, in its order; else those found, sorted, as numbers where all of them are
    whole numbers.

    Raises:
      InputError: a missing value, the same in every row, or more classes than half the rows.
    """
    named = tuple(label_name(name) or name for name in table.class_names.get(column, ()))
    if any(isinstance(value, list) for value in table.column(column)):
        found = {name for row in range(len(table)) for name in _names(table, column, row)}
        if not found:
            raise InputError(f"{table.name}: {column!r} names no label in any row")
        return LabelSpec(MULTI_LABEL, named or tuple(sorted(found)))
    values = [_name(table, column, row) for row in range(len(table))]
    distinct = set(values)
    if distinct <= {*_TRUTH, "0", "1"} and distinct & set(_TRUTH) and distinct & {"0", "1"}:
        distinct = {"0", "1"}
    numeric = all(map(_NUMBER.fullmatch, distinct))
    whole = numeric and all(number_of(name) is not None for name in distinct)
    names = sorted(distinct, key=(lambda v: (float(v), v)) if whole else (lambda v: (0.0, v)))
    if len(names) < 2:
        raise InputError(
            f"{table.name}: every row of {column!r} is {names[0]!r}; there must be two different labels or more"
        )
    if named:
        return LabelSpec(SINGLE_LABEL, named)
    if (numeric and not whole) or (whole and len(names) > _MOST_NUMBERED_CLASSES):
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
        return np.asarray([_quantity(table, column, row) for row in range(len(table))], np.float32)
    ids = LabelIds(spec.names)
    out = np.asarray([_id(table, column, row, ids) for row in range(len(table))], np.int32)
    ids.tell(table.name)
    return out


def unlabelled_rows(table: Table, columns: Sequence[str], known: Collection[str] = ()) -> list[int]:
    """Returns the rows that have no label in one of these columns. ``known``: names that are labels in any case."""
    out = []
    for row in range(len(table)):
        values = [value_of(table, column, row) for column in columns]
        flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
        names = [one for one in flat if not (isinstance(one, (list, tuple, dict, bytes)) or one in known)]
        if any(label_name(one) is None for one in names):
            out.append(row)
    return out


def _several(table: Table, columns: Sequence[str], spec: LabelSpec) -> np.ndarray:
    out = np.zeros((len(table), len(spec.names)), np.float32)
    ids = LabelIds(spec.names)
    if len(columns) == 1:
        for row in range(len(table)):
            for name in _names(table, columns[0], row):
                out[row, _known_id(table, columns[0], row, ids, name)] = 1
        ids.tell(table.name)
        return out
    for column in columns:
        at = _known_id(table, column, 0, ids, column)
        for row in range(len(table)):
            name = _name(table, column, row)
            if name not in ("0", "1", *_TRUTH):
                raise InputError(f"{table.where(row)}: {column!r} is {name!r}; several label columns hold 0 or 1")
            out[row, at] = name in ("1", "true")
    ids.tell(table.name)
    return out


def _id(table: Table, column: str, row: int, ids: LabelIds) -> int:
    value = value_of(table, column, row)
    try:
        found = ids.find(value)
        if found is None and column in table.class_names and ids.unnamed:
            found = ids.by_number(value, table.column(column)[row])
    except ValueError:
        found = None
    return _known_id(table, column, row, ids, _name(table, column, row)) if found is None else found


def _known_id(table: Table, column: str, row: int, ids: LabelIds, name: str) -> int:
    found = ids.find(name)
    if found is None:
        known = shorten(ids.names)
        raise InputError(f"{table.where(row)}: unknown label {name!r} in {column!r}; known labels: {known}")
    return found


def _quantity(table: Table, column: str, row: int) -> float:
    value = table.column(column)[row]
    try:
        number = float(label_name(value) or "nan")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        hint = f" ({SKIP})" if _is_missing(value) else ""
        raise InputError(f"{table.where(row)}: {column!r} is {shown(value)}; this model predicts a number{hint}")
    return number


def _is_missing(value: Any) -> bool:
    try:
        return label_name(value) is None
    except ValueError:
        return False


def _names(table: Table, column: str, row: int) -> list[str]:
    value = value_of(table, column, row)
    if not isinstance(value, list):
        raise InputError(f"{table.where(row)}: {column!r} is {shown(value)}; a list of labels is needed")
    try:
        names = [label_name(one) for one in value]
    except ValueError:
        names = [None]
    if None in names:
        raise InputError(f"{table.where(row)}: {column!r} is {shown(value)}; a list of names of labels is needed")
    return [name for name in names if name is not None]


def _name(table: Table, column: str, row: int) -> str:
    value = value_of(table, column, row)
    try:
        name = label_name(value)
    except ValueError:
        raise InputError(f"{table.where(row)}: {column!r} is {shown(value)}; a label is needed") from None
    if name is None:
        raise InputError(f"{table.where(row)}: {column!r} is {shown(value)}; a label is needed: {SKIP}")
    return name


def shorten(names: Sequence[str], most: int = 10) -> str:
    listed = ", ".join(map(repr, names[:most]))
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"
