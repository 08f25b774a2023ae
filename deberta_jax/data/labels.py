"""Interprets label columns: finds the type of problem, and converts labels to ids.

For all kinds of tasks, ``label_name`` decides which label a value means.
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

from deberta_jax.data.table import Table
from deberta_jax.errors import InputError, shown

_log = logging.getLogger(__name__)

REGRESSION, SINGLE_LABEL, MULTI_LABEL = "regression", "single_label_classification", "multi_label_classification"

# A column with more different integers than this is a regression.
_MOST_NUMBERED_CLASSES = 50
# Of so many different numbers none needs to be kept to see that they are no classes.
_MOST_NUMBERS = 1 << 16
# What pandas, Python and databases write for a missing value.
_MISSING = frozenset(("", "nan", "NaN", "None", "null", "NULL", "<NA>"))
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_TRUTH = ("false", "true")
SKIP = "mend the row, or leave such rows out with --skip-unlabelled"


@dataclasses.dataclass(frozen=True)
class LabelSpec:
    """Describes the labels of a task."""

    problem_type: str
    """As in ``config.json``."""
    names: tuple[str, ...]
    """Names in the order of their ids; one name for a regression."""


def label_name(value: Any) -> str | None:
    """Returns the name of the label that a value of a file means, or None if it means that there is none.

    Equal numbers are one label, written as an integer if possible (``1``, ``1.0`` and ``"1.0"`` are ``1``). True and
    False are ``true`` and ``false`` in any case. Text is normalised to NFC without white space around it. None, NaN,
    empty text and the usual words for a missing value (nan, None, null) are no label.

    Raises:
      ValueError: the value is a list or an object.
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
    """Converts a value of a file that is an integer, also as text or as 1.0, to int; returns None for other values."""
    try:
        name = label_name(value)
    except ValueError:
        return None
    return int(name) if name is not None and re.fullmatch("-?[0-9]{1,100}", name) else None


def generic_names(count: int) -> tuple[str, ...]:
    """Returns LABEL_0, LABEL_1, ...: the names of labels without names."""
    return tuple(f"LABEL_{i}" for i in range(count))


class LabelIds:
    """Finds the ids of labels.

    A value matches a label if it is equal to its name, or else if ``label_name`` gives both the same name, or else if
    these names differ only in case (released checkpoints have ENTAILMENT where the files of the task have entailment).
    1 and 0 match true and false. For labels without names (LABEL_0, ...) the ids match too.

    Args:
      names: the names of the labels in the order of their ids.
    """

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self.others: dict[str, str] = {}
        self.canonical = [label_name(name) or name for name in names]
        folded = [name.casefold() for name in self.canonical]
        self.exact = dict(zip(names, range(len(names)), strict=True))
        # (function of a name, result -> id), tried in order. A function is used only if it keeps the names distinct.
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
        """Returns the id of the label that a value means, or None. Raises ValueError for a list or an object."""
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
        """Returns ``number`` if it is the id of a label, else None. Notes a different name for ``log_renamed``.

        Args:
          written: the name that the file gives the label.
          number: its number in the file.
        """
        if type(number) is not int or not 0 <= number < len(self.names):
            return None
        if str(written) not in (self.names[number], str(number) if self.unnamed else None):
            self.others[str(written)] = self.names[number]
        return number

    def log_renamed(self, where: str) -> None:
        """Logs the values found so far that differ from the names of their labels. ``where`` names the file."""
        if self.others:
            pairs = ", ".join(f"{ours} as {theirs}" for ours, theirs in sorted(self.others.items()))
            _log.info("%s: labels are read as the model's: %s", where, pairs)


def same_labels(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """Returns whether two lists have the same labels, in any order and spelling; ids do not count as names."""
    if len(ours) != len(theirs) or tuple(ours) == generic_names(len(ours)) != tuple(theirs):
        return False
    ids = LabelIds(ours)
    found = {ids.find(name) for name in theirs}
    return None not in found and len(found) == len(ours)


def value_of(table: Table, column: str, row: int) -> Any:
    """Returns a value of a label column.

    If the file names the classes of the column, their numbers are converted to names, and -1 to None.

    Raises:
      InputError: a number has no name.
    """
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
    """Determines the type of problem and the labels from a column.

    Numbers that are not all integers give a regression, lists of names give several labels per text, and all other
    values give classes. The classes are those that the file names, in its order; otherwise those in the column, sorted,
    numerically if all are integers.

    Raises:
      InputError: a value is missing, all rows have the same, or there are more classes than half the rows.
    """
    named = tuple(label_name(name) or name for name in table.class_names.get(column, ()))
    if any(isinstance(value, list) for value in table.column(column)):
        found = {name for row in range(len(table)) for name in _names(table, column, row)}
        if not found:
            raise InputError(f"{table.name}: {column!r} names no label in any row")
        return LabelSpec(MULTI_LABEL, named or tuple(sorted(found)))
    distinct = _distinct_names(table, column)
    if distinct <= {*_TRUTH, "0", "1"} and distinct & set(_TRUTH) and distinct & {"0", "1"}:
        distinct = {"0", "1"}
    numeric = all(map(_NUMBER.fullmatch, distinct))
    whole = numeric and all(number_of(name) is not None for name in distinct)
    names = sorted(distinct, key=(lambda v: (float(v), v)) if whole else (lambda v: (0.0, v)))
    if len(names) < 2:
        raise InputError(
            f"{table.name}: every row of {column!r} is {shown(names[0])}; there must be two different labels or more"
        )
    if named:
        return LabelSpec(SINGLE_LABEL, named)
    if (numeric and not whole) or (whole and len(names) > _MOST_NUMBERED_CLASSES):
        return LabelSpec(REGRESSION, ("LABEL_0",))
    if len(names) > max(2, len(table) // 2):
        raise InputError(
            f"{table.name}: {column!r} has {len(names)} different labels in {len(table)} rows; is it the label column?"
        )
    return LabelSpec(SINGLE_LABEL, tuple(names))


def _distinct_names(table: Table, column: str) -> set[str]:
    """Returns the names of the labels in a column.

    Of numbers that are too many for classes only some are returned: those of a regression would fill the memory.

    Raises:
      InputError: a row has no label.
    """
    distinct: set[str] = set()
    numeric, complete = True, True
    for name in (_name(table, column, row) for row in range(len(table))):
        if name in distinct:
            continue
        numeric = numeric and _NUMBER.fullmatch(name) is not None
        if numeric and len(distinct) >= _MOST_NUMBERS:
            # One that is not whole makes all a regression, so it must not be missed.
            complete = False
            if number_of(name) is not None:
                continue
            distinct.pop()
        distinct.add(name)
    if not (numeric or complete):
        distinct = {_name(table, column, row) for row in range(len(table))}
    return distinct


def encode_labels(table: Table, columns: Sequence[str], spec: LabelSpec) -> np.ndarray:
    """Converts label columns to an array.

    Args:
      table: the table.
      columns: one column; or, for several labels per text, one column of 0 and 1 per label.
      spec: the labels.

    Returns:
      Label ids, int32 [n]; for a regression the numbers, float32 [n]; for several labels per text 0 and 1,
      float32 [n, C].

    Raises:
      InputError: a label is unknown, or a number is not finite; with the line.
    """
    if spec.problem_type == MULTI_LABEL:
        return _several(table, columns, spec)
    (column,) = columns
    if spec.problem_type == REGRESSION:
        return np.fromiter((_quantity(table, column, row) for row in range(len(table))), np.float32, len(table))
    ids = LabelIds(spec.names)
    out = np.fromiter((_id(table, column, row, ids) for row in range(len(table))), np.int32, len(table))
    ids.log_renamed(table.name)
    return out


def unlabelled_rows(table: Table, columns: Sequence[str], known: Collection[str] = ()) -> list[int]:
    """Returns the rows that have no label in one of the columns.

    Args:
      table: the table.
      columns: the label columns.
      known: names that are labels even if they are usual words for a missing value.
    """
    out = []
    for row in range(len(table)):
        values = [value_of(table, column, row) for column in columns]
        flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
        names = [one for one in flat if not (isinstance(one, (list, tuple, dict, bytes)) or one in known)]
        if any(label_name(one) is None for one in names):
            out.append(row)
    return out


def _several(table: Table, columns: Sequence[str], spec: LabelSpec) -> np.ndarray:
    """Returns the labels of texts with several labels: float32 [n, C] of 0 and 1."""
    out = np.zeros((len(table), len(spec.names)), np.float32)
    ids = LabelIds(spec.names)
    if len(columns) == 1:
        for row in range(len(table)):
            for name in _names(table, columns[0], row):
                out[row, _known_id(table, columns[0], row, ids, name)] = 1
        ids.log_renamed(table.name)
        return out
    for column in columns:
        at = _known_id(table, column, 0, ids, column)
        for row in range(len(table)):
            name = _name(table, column, row)
            if name not in ("0", "1", *_TRUTH):
                raise InputError(f"{table.where(row)}: {column!r} is {shown(name)}; several label columns hold 0 or 1")
            out[row, at] = name in ("1", "true")
    ids.log_renamed(table.name)
    return out


def _id(table: Table, column: str, row: int, ids: LabelIds) -> int:
    """Returns the label id of a row. Raises InputError if it has no known label."""
    value = value_of(table, column, row)
    try:
        found = ids.find(value)
        if found is None and column in table.class_names and ids.unnamed:
            found = ids.by_number(value, table.column(column)[row])
    except ValueError:
        found = None
    return _known_id(table, column, row, ids, _name(table, column, row)) if found is None else found


def _known_id(table: Table, column: str, row: int, ids: LabelIds, name: str) -> int:
    """Returns the id of a label by name. Raises InputError if it is unknown."""
    found = ids.find(name)
    if found is None:
        known = shorten(ids.names)
        raise InputError(f"{table.where(row)}: unknown label {shown(name)} in {column!r}; known labels: {known}")
    return found


_LARGEST = float(np.finfo(np.float32).max)


def _quantity(table: Table, column: str, row: int) -> float:
    """Returns the label of a row in a regression. Raises InputError if it is no finite float32."""
    value = table.column(column)[row]
    try:
        number = float(label_name(value) or "nan")
    except ValueError:
        number = math.nan
    if not abs(number) <= _LARGEST:  # NaN is not
        hint = f" ({SKIP})" if _is_missing(value) else ""
        raise InputError(f"{table.where(row)}: {column!r} is {shown(value)}; this model predicts a number{hint}")
    return number


def _is_missing(value: Any) -> bool:
    try:
        return label_name(value) is None
    except ValueError:
        return False


def _names(table: Table, column: str, row: int) -> list[str]:
    """Returns the label names of a row with several labels. Raises InputError if they are no list of names."""
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
    """Returns the label name of a row. Raises InputError if it has none."""
    value = value_of(table, column, row)
    try:
        name = label_name(value)
    except ValueError:
        raise InputError(f"{table.where(row)}: {column!r} is {shown(value)}; a label is needed") from None
    if name is None:
        raise InputError(f"{table.where(row)}: {column!r} is {shown(value)}; a label is needed: {SKIP}")
    return name


def shorten(names: Sequence[str], most: int = 10) -> str:
    """Returns at most ``most`` names for a message, and how many more there are."""
    listed = ", ".join(map(shown, names[:most]))
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"
