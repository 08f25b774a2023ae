"""Reads texts that are longer than a model reads: cut at the end, without their middle, or in windows."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

from deberta_jax.data.features import Features
from deberta_jax.data.labels import MULTI_LABEL, REGRESSION
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError
from deberta_jax.tasks import Task
from deberta_jax.tasks.activations import sigmoid
from deberta_jax.tasks.text_classification import TextTask, probabilities
from deberta_jax.text import Tokenizer

LongText = Literal["truncate", "head-tail", "windows"]
WindowScore = Literal["max", "mean"]

HOW_READ: dict[LongText, str] = {
    "truncate": "cut",
    "head-tail": "read without their middle",
    "windows": "read in overlapping windows",
}
"""How long texts are read, in words for the log."""

# No text has as many tokens.
ALL_TOKENS = 1 << 30


def long_features(
    task: Task, table: Table, tokenizer: Tokenizer, max_length: int, how: LongText, *, labelled: bool
) -> Features:
    """Returns the tokens of a table's rows, of which long ones lose their middle or are split into windows.

    Args:
      task, table, tokenizer, labelled: as for ``Task.features``.
      max_length, how: as for ``split_long``.

    Raises:
      InputError: as ``Task.features``, or the task has no single text with one answer.
    """
    if not isinstance(task, TextTask) or len(task.text) > 1:
        raise InputError(f"--long-text {how}: is for classification and regression of single texts; leave it out")
    return split_long(task.features(table, tokenizer, ALL_TOKENS, labelled=labelled), max_length, how)


def split_long(whole: Features, max_length: int, how: LongText) -> Features:
    """Returns the tokens of texts, of which long ones lose their middle or are split into windows.

    Windows overlap by a quarter, and each begins and ends with the text's own first and last token, [CLS] and [SEP].

    Args:
      whole: all tokens of the texts.
      max_length: the largest number of tokens of a text or a window.
      how: ``head-tail`` keeps the first and the last half of ``max_length`` tokens, ``windows`` all.

    Returns:
      The tokens; with windows ``row`` is the number of the text of each.
    """
    parts, rows = [], []
    for row in range(len(whole)):
        start, end = int(whole.starts[row]), int(whole.starts[row + 1])
        for tokens in _parts(np.arange(start, end), max_length, how):
            parts.append(tokens)
            rows.append(row)
    tokens = np.concatenate(parts)
    return dataclasses.replace(
        whole,
        ids=whole.ids[tokens],
        types=whole.types[tokens],
        starts=np.concatenate([[0], np.cumsum([len(part) for part in parts])]),
        row=np.array(rows, np.int32) if how == "windows" else None,
        cut=int((whole.lengths > max_length).sum()),
    )


def _parts(tokens: np.ndarray, max_length: int, how: LongText) -> list[np.ndarray]:
    """Returns the tokens of a text that are kept, or those of each window."""
    if len(tokens) <= max_length:
        return [tokens]
    if how == "head-tail":
        head = (max_length + 1) // 2
        return [np.concatenate([tokens[:head], tokens[len(tokens) - (max_length - head) :]])]
    inner, size = tokens[1:-1], max_length - 2
    step = max(1, size - size // 4)
    starts = range(0, len(inner) - size + step, step)
    # The last window is full too.
    windows = [inner[min(start, len(inner) - size) :][:size] for start in starts]
    return [np.concatenate([tokens[:1], window, tokens[-1:]]) for window in windows]


def joined_logits(logits: np.ndarray, features: Features, problem_type: str, score: WindowScore) -> np.ndarray:
    """Returns one row of logits for each text, float32 [texts, C], from those of its windows [n, C].

    Of classes and of several labels the largest or the mean probability counts (of classes divided by their sum), of a
    regression the largest or the mean number. A row of one window keeps its logits.

    Args:
      logits: those of the windows.
      features: the windows, as ``split_long`` returns them.
      problem_type: what the logits mean: that of a ``LabelSpec``.
      score: ``max`` or ``mean``.
    """
    assert features.row is not None
    combine: Callable[..., np.ndarray] = np.max if score == "max" else np.mean
    first = np.flatnonzero(np.diff(features.row, prepend=-1))
    out = logits[first].copy()
    for row, start, end in zip(range(len(first)), first, [*first[1:], len(logits)], strict=True):
        if end - start == 1 or not np.isfinite(logits[start:end]).all():
            out[row] = logits[start] if end - start == 1 else np.nan
        elif problem_type == REGRESSION:
            out[row] = combine(logits[start:end], axis=0)
        elif problem_type == MULTI_LABEL:
            p = np.clip(combine(sigmoid(logits[start:end].astype(np.float64)), axis=0), 1e-15, 1 - 1e-15)
            out[row] = np.log(p) - np.log1p(-p)
        else:
            p = combine(probabilities(logits[start:end]), axis=0)
            out[row] = np.log(np.maximum(p / p.sum(), 1e-300))
    return out
