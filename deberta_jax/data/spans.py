"""Reads labelled spans of characters, in the forms that annotation tools write, and checks them against their texts."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from deberta_jax.data.labels import SKIP, label_name, number_of
from deberta_jax.data.questions import locate
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError, shown

_STARTS = ("start", "start_offset", "start_char", "begin")
_ENDS = ("end", "end_offset", "end_char", "stop")
_LABELS = ("label", "labels", "entity", "type", "tag", "entity_group", "entity_type")


@dataclasses.dataclass(frozen=True, order=True)
class Span:
    """Holds a labelled span of a text, from character ``start`` up to but not including ``end``."""

    start: int
    end: int
    label: str


def is_span_column(values: Sequence[Any]) -> bool:
    """Returns whether a column holds lists of spans: ``[start, end, label]``, or objects with these fields."""
    lists = lambda: (value for value in values if value is not None)
    return all(isinstance(value, list) and all(map(_is_span, value)) for value in lists()) and any(lists())


def _is_span(item: Any) -> bool:
    if isinstance(item, dict):
        return all(any(name in item for name in names) for names in (_STARTS, _ENDS, _LABELS))
    return (
        isinstance(item, (list, tuple))
        and len(item) == 3
        and isinstance(item[2], str)
        and all(type(end) is int for end in item[:2])
    )


def spans_of(table: Table, text: str, column: str, row: int) -> tuple[list[Span], int]:
    """Reads the spans of a row.

    White space at the ends of a span is left out. If a span comes with its text and that is at another position, the
    closest occurrence is used, as for answers.

    Args:
      table: the table.
      text: the column of texts.
      column: the column of spans.
      row: the row.

    Returns:
      The spans in order, and the number of spans that were moved.

    Raises:
      InputError: spans are missing, outside the text, or overlap; with the line.
    """
    context, value = table.column(text)[row], table.column(column)[row]
    if not isinstance(context, str):
        raise InputError(f"{table.where(row)}: {text!r} is {shown(context)}; a text is needed")
    if value is None:
        raise InputError(f"{table.where(row)}: {column!r} is missing; {SKIP}")
    if not isinstance(value, list) or not all(map(_is_span, value)):
        raise InputError(f"{table.where(row)}: {column!r} is {shown(value)}; a list of [start, end, label] is needed")
    out, moved = [], 0
    for item in value:
        start, end, label, own = _fields(item)
        name = None if isinstance(label, (list, dict)) else label_name(label)
        if name is None:
            raise InputError(f"{table.where(row)}: a span in {column!r} is {shown(item)}; it needs one label")
        if own and isinstance(own, str) and start is not None and context[start:end] != own:
            found = locate(context, own, start)
            if found is None:
                raise InputError(f"{table.where(row)}: the text of the span {shown(item)} is not in {text!r}; {SKIP}")
            start, end, moved = found, found + len(own), moved + 1
        if start is None or end is None or not 0 <= start < end <= len(context):
            raise InputError(
                f"{table.where(row)}: the span {shown(item)} is not within the {len(context)} characters of {text!r}; "
                f"{SKIP}"
            )
        inner = context[start:end]
        start, end = end - len(inner.lstrip()), start + len(inner.rstrip())
        if start < end:
            out.append(Span(start, end, name))
    out.sort()
    for first, second in itertools.pairwise(out):
        if second.start < first.end:
            raise InputError(
                f"{table.where(row)}: the spans {shown(context[first.start : first.end])} and "
                f"{shown(context[second.start : second.end])} overlap; a word has one tag; {SKIP}"
            )
    return out, moved


def _fields(item: Any) -> tuple[int | None, int | None, Any, Any]:
    """Returns start, end, label and own text of a span in any form."""
    if not isinstance(item, dict):
        return item[0], item[1], item[2], None
    start, end, label = (next(item[name] for name in names if name in item) for names in (_STARTS, _ENDS, _LABELS))
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    whole = [None if isinstance(value, bool) else number_of(value) for value in (start, end)]
    return whole[0], whole[1], label, item.get("text")


def unusable_rows(table: Table, text: str, column: str) -> list[int]:
    """Returns the rows whose spans are missing or cannot be used."""
    out = []
    for row in range(len(table)):
        try:
            spans_of(table, text, column, row)
        except InputError:
            out.append(row)
    return out
