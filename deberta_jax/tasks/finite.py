"""Keeps scores that are not finite out of answers and metrics: they are refused by row, or answered with null."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from deberta_jax.data.features import Features
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError

NonFinite = Literal["refuse", "null"]
Answer = Callable[[np.ndarray, Features, Table], list[dict[str, Any]]]


def rows_not_finite(logits: np.ndarray, features: Features, rows: int) -> np.ndarray:
    """Returns for each row of the table whether any of its logits is NaN or infinite: bool [rows].

    Args:
      logits: one row for each text [n, K], or for each token [N, K].
      features: the tokens that the logits are of.
      rows: number of rows of the table.
    """
    bad: np.ndarray = np.logical_not(np.isfinite(logits).all(axis=-1))
    if len(bad) == len(features.ids) and len(bad) != len(features.lengths):
        bad = np.bincount(np.repeat(np.arange(len(features.lengths)), features.lengths), bad, len(features.lengths)) > 0
    row = np.arange(len(bad)) // features.choices if features.row is None else features.row
    return np.bincount(row, bad, rows) > 0


def check_finite_rows(logits: np.ndarray, features: Features, table: Table) -> None:
    """Raises InputError, which names the first row, if the logits of a row are not finite."""
    if np.isfinite(logits).all():
        return
    bad = np.flatnonzero(rows_not_finite(logits, features, len(table)))
    raise InputError(
        f"{table.where(int(bad[0]))}: the model's scores are NaN or infinite, as for {len(bad)} of {len(table)} rows; "
        "check the model's weights with `deberta-jax inspect`"
    )


def finite_answers(
    answer: Answer, logits: np.ndarray, features: Features, table: Table, non_finite: NonFinite
) -> list[dict[str, Any]]:
    """Returns the answers of a task, without a number that is not finite.

    Args:
      answer: computes the answers to all rows from logits.
      logits, features, table: its arguments.
      non_finite: what is done with rows whose logits are not finite: ``refuse`` them, or answer ``null``: each value is
        None except ``id``. Other rows have their own answers.

    Raises:
      InputError: such a row is refused.
    """
    if non_finite == "refuse":
        check_finite_rows(logits, features, table)
    bad = np.flatnonzero(rows_not_finite(logits, features, len(table)))
    answers = answer(np.where(np.isfinite(logits), logits, 0).astype(logits.dtype), features, table)
    for row in bad.tolist():
        answers[row] = {name: value if name == "id" else None for name, value in answers[row].items()}
    return answers
