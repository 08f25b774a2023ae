"""Rows without a usable label: refused by the tasks, or left out where the user wants that."""

import logging
from collections.abc import Collection

from deberta_jax.data.columns import CHOICES, SPANS, WORDS
from deberta_jax.data.labels import unlabelled_rows
from deberta_jax.data.questions import unfindable_rows
from deberta_jax.data.spans import unusable_rows
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError
from deberta_jax.inference.tasks.base import TaskOptions
from deberta_jax.inference.tasks.words import untagged_rows

_log = logging.getLogger(__name__)


def without_unlabelled(options: TaskOptions, kind: str, table: Table, known: Collection[str] = ()) -> Table:
    """Returns the table without the rows that have no usable label, where ``skip_unlabelled`` asks for that.

    Args:
      options: with columns resolved.
      kind: of the task.
      known: names that are labels, whatever they look like.

    Raises:
      InputError: no row has a label.
    """
    if not options.skip_unlabelled:
        return table
    rows = set(_rows(options, kind, table, known))
    if not rows:
        return table
    if len(rows) == len(table):
        raise InputError(f"{table.name}: no row has a usable label")
    _log.warning("%s: %d of %d rows have no usable label and are left out", table.name, len(rows), len(table))
    return table.select([row for row in range(len(table)) if row not in rows])


def _rows(o: TaskOptions, kind: str, table: Table, known: Collection[str]) -> list[int]:
    if kind == WORDS:
        raw = any(isinstance(value, str) for value in table.column(o.text[0]))
        return unusable_rows(table, o.text[0], o.label) if raw else untagged_rows(table, o.label)
    if kind == SPANS:
        return unfindable_rows(table, o.label, o.text[1])
    if kind == CHOICES:
        return unlabelled_rows(table, (o.label,))
    return unlabelled_rows(table, o.labels or (o.label,), known)
