"""Defines tagging of raw texts: labels are named spans of characters, and each word of a text gets a tag.

Also defines the kind ``TOKEN_CLASSIFICATION``, which selects ``WordTask`` for lists of words and ``EntityTask`` for raw
texts.
"""

import dataclasses
import logging
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.data.entities import text_features
from deberta_jax.data.features import Features
from deberta_jax.data.layouts import TAG_COLUMNS, WORD_COLUMNS, named_column
from deberta_jax.data.spans import Span, is_span_column, spans_of, unusable_rows
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError
from deberta_jax.tasks.base import Metrics, NamedTask, TaskKind, TaskOptions
from deberta_jax.tasks.chunks import chunks, span_metrics
from deberta_jax.tasks.columns import Columns, guess_text, unknown_column
from deberta_jax.tasks.metrics import classification_metrics
from deberta_jax.tasks.text_classification import mean_loss, probabilities
from deberta_jax.tasks.token_classification import (
    WordTask,
    by_sentence,
    discover_tags,
    owners,
    sorted_tags,
    untagged_rows,
)
from deberta_jax.text import Tokenizer

_SPANS = ("spans", "entities", "label", "labels", "annotations", "ner")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EntityTask(WordTask):
    """Predicts the named spans of raw texts.

    Attributes:
      text: the column of raw texts.
      label: the column of their spans of characters, in a form that ``data.spans`` reads.
      names: the names of the words' tags (IOB2).
    """

    def features(self, table: Table, tokenizer: Tokenizer, max_length: int, *, labelled: bool) -> Features:
        texts = table.texts(self.text)
        spans = self._spans(table) if labelled else None
        try:
            features = text_features(tokenizer, texts, spans, self.names, max_length=max_length)
        except InputError as error:
            raise InputError(f"{table.name}: {error}") from None
        if spans is not None:
            widened = sum(map(len, spans)) - _count_aligned(spans, features)
            if widened:
                _log.warning(
                    "%s: %d of %d spans do not begin and end with a word; whole words are tagged",
                    table.name,
                    widened,
                    sum(map(len, spans)),
                )
        return features

    def _spans(self, table: Table) -> list[list[Span]]:
        rows = [spans_of(table, self.text, self.label, row) for row in range(len(table))]
        moved = sum(count for _, count in rows)
        if moved:
            _log.warning(
                "%s: %d spans are not where the file says; the nearest position with their text is taken",
                table.name,
                moved,
            )
        return [spans for spans, _ in rows]

    def metrics(self, logits: np.ndarray, features: Features, table: Table) -> Metrics:
        """Returns precision, recall and F1 of spans that agree in label and characters, accuracy of tags, and loss."""
        assert features.labels is not None
        there = features.labels >= 0
        guess = [
            [(s["label"], s["start"], s["end"]) for s in a.get("spans", [])]
            for a in self.answers(logits, features, table)
        ]
        logits, labels = logits[there], features.labels[there]
        loss = mean_loss(logits, labels)
        truth = [
            [(s.label, s.start, s.end) for s in spans_of(table, self.text, self.label, row)[0]]
            for row in range(len(table))
        ]
        accuracy = classification_metrics(logits, labels)["accuracy"]
        return span_metrics(truth, guess) | {"accuracy": accuracy, "loss": float(loss)}

    def answers(self, logits: np.ndarray, features: Features, table: Table) -> list[dict[str, Any]]:
        assert features.words is not None
        assert features.offsets is not None
        begins = features.words >= 0
        logits, owner = logits[begins], owners(features)[begins]
        tags = by_sentence(logits.argmax(-1), owner, len(table), self.names)
        cuts = np.cumsum(np.bincount(owner, minlength=len(table)))[:-1]
        certainty = np.split(probabilities(logits).max(-1), cuts)
        offsets = np.split(features.offsets[begins], cuts)
        texts = table.texts(self.text)
        return [tagged_answer(*row, spans=self.spans) for row in zip(texts, tags, certainty, offsets, strict=True)]


def tagged_answer(
    text: str, tags: Sequence[str], scores: np.ndarray, offsets: np.ndarray, *, spans: bool
) -> dict[str, Any]:
    """Returns the tags of a text's words, their probabilities, their characters (``offsets``), and the named spans.

    A span has ``label``, ``start`` and ``end`` in characters, ``text``, and ``score``, the mean of its words'
    probabilities. Spans are left out if tags do not mark any.
    """
    answer: dict[str, Any] = {"tags": list(tags), "scores": scores.tolist(), "offsets": offsets.tolist()}
    if spans:
        answer["spans"] = [
            {
                "label": kind,
                "start": (start := int(offsets[first, 0])),
                "end": (end := int(offsets[last, 1])),
                "text": text[start:end],
                "score": float(scores[first : last + 1].mean()),
            }
            for kind, first, last in chunks(tags)
        ]
    return answer


def discover_spans(table: Table, text: str, label: str) -> tuple[str, ...]:
    """Returns the tags (IOB2) for all labels in a column of spans. Raises InputError if it has no span."""
    kinds = {span.label for row in range(len(table)) for span in spans_of(table, text, label, row)[0]}
    if not kinds:
        raise InputError(f"{table.name}: {label!r} has no span in any row")
    return sorted_tags({"O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")})


def _count_aligned(spans: Sequence[Sequence[Span]], features: Features) -> int:
    """Returns the number of spans that begin with a word and end with a word."""
    assert features.words is not None
    assert features.offsets is not None
    begins = features.words >= 0
    owner = owners(features)[begins].tolist()
    starts = {(row, start) for row, start in zip(owner, features.offsets[begins][:, 0].tolist(), strict=True)}
    ends = {(row, end) for row, end in zip(owner, features.offsets[begins][:, 1].tolist(), strict=True)}
    return sum((row, s.start) in starts and (row, s.end) in ends for row, text in enumerate(spans) for s in text)


def _words_column(table: Table) -> str | None:
    """Returns the column of lists of words; None if there is none."""
    name = named_column(table, WORD_COLUMNS)
    first = table.columns[name][0] if name else None
    return name if isinstance(first, list) and all(isinstance(word, str) for word in first) else None


def _spans_column(table: Table) -> str | None:
    """Returns the column of named spans of characters; None if there is none."""
    names = [*(name for name in _SPANS if name in table.columns), *table.columns]
    return next((name for name in names if is_span_column(table.columns[name])), None)


def _recognizes(table: Table) -> bool:
    return bool((_words_column(table) and named_column(table, TAG_COLUMNS)) or _spans_column(table))


def _columns(table: Table, options: TaskOptions, labelled: bool) -> Columns:
    """Finds words and tags, or texts and spans of characters."""
    text, label, words = options.text, options.label, _words_column(table)
    if not text:
        text = (words,) if words else guess_text(table, label)
    if labelled and not (label or options.labels):
        listed = isinstance(table.column(text[0])[0], list)
        guess = named_column(table, TAG_COLUMNS) if listed else _spans_column(table)
        if guess is None:
            raise unknown_column(table, "the label", "--label")
        label = guess
    return Columns(text, label)


def _is_raw(table: Table, text: str) -> bool:
    return any(isinstance(value, str) for value in table.column(text))


def _task(options: TaskOptions, table: Table, names: Sequence[str]) -> WordTask:
    """Returns the task for lists of words or for raw texts; without ``names`` the tags are those in the table."""
    text = options.text[0]
    if _is_raw(table, text):
        return EntityTask(text, options.label, tuple(names) or discover_spans(table, text, options.label))
    return WordTask(text, options.label, tuple(names) or discover_tags(table, text, options.label))


def _task_of_table(options: TaskOptions, table: Table, named: NamedTask | None) -> WordTask:
    return _task(options, table, named.names if named else ())


def _task_of_model(options: TaskOptions, config: DebertaConfig, table: Table, named: NamedTask | None) -> WordTask:
    return _task(options, table, config.id2label)


def _unlabelled(options: TaskOptions, table: Table, known: Collection[str]) -> list[int]:
    text = options.text[0]
    return unusable_rows(table, text, options.label) if _is_raw(table, text) else untagged_rows(table, options.label)


TOKEN_CLASSIFICATION = TaskKind(
    head="token-classification",
    columns=_columns,
    task=_task_of_table,
    task_of_model=_task_of_model,
    unlabelled=_unlabelled,
    recognizes=_recognizes,
    word_lists=True,
)
