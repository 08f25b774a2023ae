"""Named spans of characters in raw texts: a tag for each word of the text as it stands."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from deberta_jax.data.entities import text_features
from deberta_jax.data.features import Features
from deberta_jax.data.spans import Span, spans_of
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError
from deberta_jax.inference.chunks import chunks, span_metrics
from deberta_jax.inference.metrics import classification_metrics
from deberta_jax.inference.tasks.base import Metrics
from deberta_jax.inference.tasks.text import mean_loss, probabilities
from deberta_jax.inference.tasks.words import WordTask, by_sentence, owners, sorted_tags
from deberta_jax.text import Tokenizer

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EntityTask(WordTask):
    """``text``: the column of raw texts. ``label``: that of their spans of characters, in a form that ``data.spans``
    reads. Answers are spans of characters too."""

    def features(self, table: Table, tokenizer: Tokenizer, max_length: int, *, labelled: bool) -> Features:
        texts = table.texts(self.text)
        spans = self._spans(table) if labelled else None
        try:
            features = text_features(tokenizer, texts, spans, self.names, max_length=max_length)
        except InputError as error:
            raise InputError(f"{table.name}: {error}") from None
        if spans is not None:
            widened = sum(map(len, spans)) - _whole(spans, features)
            if widened:
                _log.warning(
                    "%s: %d of %d spans do not begin and end with a word; whole words are tagged",
                    table.name,
                    widened,
                    sum(map(len, spans)),
                )
        return features

    def _spans(self, table: Table) -> list[list[Span]]:
        found = [spans_of(table, self.text, self.label, row) for row in range(len(table))]
        moved = sum(count for _, count in found)
        if moved:
            _log.warning(
                "%s: %d spans are not where the file says; the nearest place with their text is taken",
                table.name,
                moved,
            )
        return [spans for spans, _ in found]

    def metrics(self, found: np.ndarray, features: Features, table: Table) -> Metrics:
        """Precision, recall and F1 of spans that agree in label and characters, accuracy of the words' tags, loss."""
        assert features.labels is not None
        there = features.labels >= 0
        logits, labels = found[there], features.labels[there]
        loss = mean_loss(logits, labels)
        guess = [
            [(s["label"], s["start"], s["end"]) for s in a.get("spans", [])]
            for a in self.answers(found, features, table)
        ]
        truth = [
            [(s.label, s.start, s.end) for s in spans_of(table, self.text, self.label, row)[0]]
            for row in range(len(table))
        ]
        accuracy = classification_metrics(logits, labels)["accuracy"]
        return span_metrics(truth, guess) | {"accuracy": accuracy, "loss": float(loss)}

    def answers(self, found: np.ndarray, features: Features, table: Table) -> list[dict[str, Any]]:
        assert features.words is not None
        assert features.offsets is not None
        begins = features.words >= 0
        logits, owner = found[begins], owners(features)[begins]
        tags = by_sentence(logits.argmax(-1), owner, len(table), self.names)
        cuts = np.cumsum(np.bincount(owner, minlength=len(table)))[:-1]
        shares = np.split(probabilities(logits).max(-1), cuts)
        offsets = np.split(features.offsets[begins], cuts)
        texts = table.texts(self.text)
        return [text_answer(*row, spans=self.spans) for row in zip(texts, tags, shares, offsets, strict=True)]


def text_answer(
    text: str, tags: Sequence[str], scores: np.ndarray, offsets: np.ndarray, *, spans: bool
) -> dict[str, Any]:
    """Returns the tags of a text's words, their probabilities and characters (``offsets``), and where tags mark spans
    those: ``label``, ``start`` and ``end`` in characters, ``text``, and ``score``, the mean of their words'."""
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
    """Returns the tags (IOB2) of all labels of a column of spans. Raises InputError where it holds none."""
    kinds = {span.label for row in range(len(table)) for span in spans_of(table, text, label, row)[0]}
    if not kinds:
        raise InputError(f"{table.name}: {label!r} has no span in any row")
    return sorted_tags({"O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")})


def _whole(spans: Sequence[Sequence[Span]], features: Features) -> int:
    """How many spans begin and end where words do."""
    assert features.words is not None
    assert features.offsets is not None
    begins = features.words >= 0
    owner = owners(features)[begins].tolist()
    starts = {(row, start) for row, start in zip(owner, features.offsets[begins][:, 0].tolist(), strict=True)}
    ends = {(row, end) for row, end in zip(owner, features.offsets[begins][:, 1].tolist(), strict=True)}
    return sum((row, s.start) in starts and (row, s.end) in ends for row, text in enumerate(spans) for s in text)
