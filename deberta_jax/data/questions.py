"""Reads answers to questions about a text, in the forms that files have them, and decides which have none.

A question has no answer if its answers are empty or missing, if ``is_impossible`` is true, or if the texts of its
answers are empty. Reading, labels and metrics all use this module.
"""

import bisect
import itertools
import math
from typing import Any

from deberta_jax.data.labels import label_name, number_of
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError, shown

IMPOSSIBLE = "is_impossible"


def answer_lists(table: Table, column: str, row: int) -> tuple[list[str], list[int]]:
    """Returns the texts and starts (in characters) of a row's answers; two empty lists if it has no answer.

    It reads ``{"text": [...], "answer_start": [...]}`` (as on the hub), ``[{"text": ..., "answer_start": ...}]`` (as in
    SQuAD), and a text whose start is in the column ``answer_start``. A start may be text, or 30.0.

    Raises:
      InputError: the answers have another form; with the line.
    """
    value = table.column(column)[row]
    if _is_impossible(table, row):
        return [], []
    try:
        start = table.columns["answer_start"][row] if "answer_start" in table.columns else None
        texts, starts = _parts(value, start)
        kept = [(text, _start(start)) for text, start in zip(texts, starts, strict=True) if text]
    except (TypeError, ValueError, KeyError):
        raise InputError(
            f'{table.where(row)}: {column!r} is {shown(value)}; it must be {{"text": [...], "answer_start": [...]}}'
        ) from None
    return [text for text, _ in kept], [start for _, start in kept]


def _is_impossible(table: Table, row: int) -> bool:
    """Returns whether ``is_impossible`` is true. Raises InputError if it is neither true nor false."""
    values = table.columns.get(IMPOSSIBLE)
    if values is None:
        return False
    try:
        name = label_name(values[row])
    except ValueError:
        name = "?"
    if name not in ("true", "false", "1", "0", None):
        raise InputError(f"{table.where(row)}: {IMPOSSIBLE!r} is {shown(values[row])}; it must be true or false")
    return name in ("true", "1")


def _parts(value: Any, start: Any) -> tuple[list[str], list[Any]]:
    """Returns the texts and starts of answers in any form. Raises TypeError, KeyError if they have another."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return [], []
    if isinstance(value, dict):
        texts, starts = value["text"], value["answer_start"]
    elif isinstance(value, list) and all(isinstance(answer, dict) for answer in value):
        texts, starts = [answer["text"] for answer in value], [answer["answer_start"] for answer in value]
    else:
        texts, starts = value, start
    if isinstance(texts, str):
        texts, starts = [texts], [starts]
    if texts is None:
        texts, starts = [], []
    if not isinstance(texts, list) or not isinstance(starts, list) or not all(isinstance(t, str) for t in texts):
        raise TypeError
    return texts, starts


def _start(value: Any) -> int:
    """Returns the start of an answer. Raises ValueError if it is no non-negative integer."""
    number = None if isinstance(value, bool) else number_of(value)
    if number is None or number < 0:
        raise ValueError
    return number


def locate(context: str, text: str, start: int) -> int | None:
    """Returns the position of ``text`` in ``context`` that is closest to ``start``, or None if it does not occur.

    If ``text`` is at ``start``, or at ``start`` counted in UTF-16 units (as in JavaScript and Java), that is returned.
    """
    if context.startswith(text, start):
        return start
    units = list(itertools.accumulate(1 + (character > "\uffff") for character in context[:start]))
    at = bisect.bisect_left(units, start) + 1
    if at <= len(units) and units[at - 1] == start and context.startswith(text, at):
        return at
    before = context.rfind(text, 0, min(start, len(context)) + len(text))
    after = context.find(text, start)
    found = [at for at in (before, after) if at >= 0]
    return min(found, key=lambda at: abs(at - start)) if found else None


def answer_span(table: Table, column: str, row: int, context: str) -> tuple[int, int, bool] | None:
    """Finds the first answer of a row in its context.

    Args:
      table: the table.
      column: the column of answers.
      row: the row.
      context: the text of the context.

    Returns:
      First and end character, and whether the start in the file was wrong; None if the question has no answer.

    Raises:
      InputError: the answer is not in its context.
    """
    texts, starts = answer_lists(table, column, row)
    if not texts:
        return None
    start = locate(context, texts[0], starts[0])
    if start is None:
        raise InputError(
            f"{table.where(row)}: the answer {shown(texts[0])} is not in the context, neither at character "
            f"{starts[0]} nor elsewhere; mend the row, or leave such rows out with --skip-unlabelled"
        )
    return start, start + len(texts[0]), start != starts[0]


def unfindable_rows(table: Table, column: str, context: str) -> list[int]:
    """Returns the rows whose answer is not in their context."""
    out = []
    for row, text in enumerate(table.texts(context)):
        texts, starts = answer_lists(table, column, row)
        if texts and locate(text, texts[0], starts[0]) is None:
            out.append(row)
    return out
