"""Defines extractive question answering: the answer is a span of the context, or "no answer"."""

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.data.features import Features, span_features
from deberta_jax.data.questions import answer_lists, answer_span, unfindable_rows
from deberta_jax.data.table import Table
from deberta_jax.models import HEADS
from deberta_jax.ops import losses
from deberta_jax.ops.losses import Items
from deberta_jax.tasks.base import Metrics, NamedTask, Task, TaskKind, TaskOptions
from deberta_jax.tasks.columns import Columns
from deberta_jax.tasks.squad import Answers, answer_scores, collect_answers, squad_metrics
from deberta_jax.tasks.text_classification import probabilities
from deberta_jax.text import Tokenizer

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SpanTask(Task):
    """Finds the answer to a question in a context.

    Attributes:
      question, context: the columns of questions and contexts.
      answers_column: the column of answers, in a form that ``data.questions`` reads.
      may_be_none: "no answer" is an answer, as in SQuAD 2.
      stride: number of tokens by which the windows of a long context overlap.
      longest: largest number of tokens of an answer.
      n_best: number of answers that are kept for each question.
      threshold: margin by which the score of "no answer" must exceed that of the best answer to be chosen.
    """

    head: ClassVar[str] = "question-answering"
    question: str
    context: str
    answers_column: str
    may_be_none: bool
    stride: int
    longest: int
    n_best: int
    threshold: float

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("f1", "exact_match", "loss")

    def configure(self, config: DebertaConfig) -> DebertaConfig:
        return dataclasses.replace(config, id2label=HEADS[self.head].fixed_labels, problem_type=None)

    def describe(self) -> str:
        return "answers: spans of the context" + (", or none" if self.may_be_none else "")

    def features(self, table: Table, tokenizer: Tokenizer, max_length: int, *, labelled: bool) -> Features:
        questions = [text.strip() for text in table.texts(self.question)]
        contexts = table.texts(self.context)
        answers = self._spans(table, contexts) if labelled else None
        return span_features(
            tokenizer,
            questions,
            contexts,
            answers,
            max_length=max_length,
            stride=min(self.stride, max_length // 2),
            where=table.where,
        )

    def _spans(self, table: Table, contexts: Sequence[str]) -> list[tuple[int, int] | None]:
        spans = [answer_span(table, self.answers_column, row, contexts[row]) for row in range(len(table))]
        moved = sum(span is not None and span[2] for span in spans)
        if moved:
            _log.warning(
                "%s: %d of %d answers do not start where the file says; the nearest position with their text is taken",
                table.name,
                moved,
                len(table),
            )
        return [span if span is None else span[:2] for span in spans]

    def loss(self, out: Any, batch: Mapping[str, jax.Array]) -> Items:
        labels = batch["labels"]
        if "segment_ids" not in batch:
            mask = batch["attention_mask"]
            return losses.span_loss(out.start_logits, out.end_logits, labels[:, 0], labels[:, 1], mask)
        # Packed: a softmax over the tokens of each text, [B, P, T].
        count = labels.shape[1]
        segment_ids = jnp.arange(1, count + 1, dtype=jnp.int32)[None, :, None]
        mask = (batch["segment_ids"][:, None, :] == segment_ids).reshape(-1, batch["segment_ids"].shape[-1])
        repeat = lambda a: jnp.repeat(a, count, axis=0)
        value, weight = losses.span_loss(
            repeat(out.start_logits),
            repeat(out.end_logits),
            labels[..., 0].reshape(-1),
            labels[..., 1].reshape(-1),
            mask,
        )
        return value.reshape(labels.shape[:2]), weight.reshape(labels.shape[:2])

    def metrics(self, logits: np.ndarray, features: Features, table: Table) -> Metrics:
        answers = self._collect(logits, features)
        guesses = [self._text(answers[row], table.column(self.context)[row]) for row in range(len(table))]
        truths = [answer_lists(table, self.answers_column, row)[0] for row in range(len(table))]
        return squad_metrics(guesses, truths) | {"loss": _loss(logits, features)}

    def answers(self, logits: np.ndarray, features: Features, table: Table) -> list[dict[str, Any]]:
        answers = self._collect(logits, features)
        contexts = table.column(self.context)
        rows = [self.answer(answers[row], contexts[row]) for row in range(len(table))]
        if "id" in table.columns:
            rows = [{"id": name, **row} for name, row in zip(table.columns["id"], rows, strict=True)]
        return rows

    def _collect(self, logits: np.ndarray, features: Features) -> Mapping[int, Answers]:
        assert features.row is not None
        assert features.offsets is not None
        return collect_answers(
            logits, features.starts, features.row, features.offsets, n_best=self.n_best, longest=self.longest
        )

    def _has_no_answer(self, answers: Answers) -> bool:
        """Tells whether "no answer" is the answer."""
        if not answers.best:
            return True
        return self.may_be_none and answers.nothing - answers.best[0].score > self.threshold

    def _text(self, answers: Answers, context: str) -> str:
        return "" if self._has_no_answer(answers) else context[answers.best[0].start : answers.best[0].end]

    def answer(self, answers: Answers, context: str) -> dict[str, Any]:
        """Returns the answer with its text, characters and score, and the n best answers.

        Scores are probabilities among the n best answers and, if it is possible, "no answer".
        """
        scores = [answer.score for answer in answers.best] + ([answers.nothing] if self.may_be_none else [])
        certainty = probabilities(np.array(scores or [0.0])).tolist()
        best = [
            {"answer": context[a.start : a.end], "start": a.start, "end": a.end, "score": score}
            for a, score in zip(answers.best, certainty, strict=False)
        ]
        if self._has_no_answer(answers):
            first = {"answer": "", "start": 0, "end": 0, "score": certainty[-1]}
        else:
            first = best[0]
        out = {**first, "n_best": best}
        if self.may_be_none:
            out["no_answer_margin"] = answers.nothing - (answers.best[0].score if answers.best else 0.0)
        return out

    def details(self, logits: np.ndarray, features: Features, table: Table) -> dict[str, Any]:
        answers = self._collect(logits, features)
        contexts = table.column(self.context)
        guesses = [self._text(answers[row], contexts[row]) for row in range(len(table))]
        truths = [answer_lists(table, self.answers_column, row)[0] for row in range(len(table))]
        scores = [answer_scores(g, t)[1] for g, t in zip(guesses, truths, strict=True)]
        wrong = [row for row in range(len(table)) if scores[row] == 0][:10]
        return {
            "histogram": {"title": "F1 of the questions", "values": scores, "axis": "F1"},
            "wrong": [[table.where(r), " | ".join(truths[r]) or "no answer", guesses[r], scores[r]] for r in wrong],
        }


def _loss(logits: np.ndarray, features: Features) -> float:
    """Returns the mean cross-entropy of start and end over all windows; the softmax is over the window's tokens."""
    assert features.labels is not None
    values = []
    for text, answer in enumerate(features.labels):
        window = logits[features.starts[text] : features.starts[text + 1]].astype(np.float64)
        largest = window.max(axis=0)
        logsumexp = largest + np.log(np.exp(window - largest).sum(axis=0))
        values.append((logsumexp - window[answer, [0, 1]]).mean())
    return float(np.mean(values))


def _answers_column(table: Table) -> str | None:
    """Returns the column of the answers; None if there is none."""
    if "answers" in table.columns:
        return "answers"
    return "answer" if {"answer", "answer_start"} <= set(table.columns) else None


def _recognizes(table: Table) -> bool:
    return {"question", "context"} <= set(table.columns) and _answers_column(table) is not None


def _columns(table: Table, options: TaskOptions, labelled: bool) -> Columns:
    return Columns(options.text or ("question", "context"), options.label or _answers_column(table) or "answers")


def _task(options: TaskOptions, may_be_none: bool) -> SpanTask:
    o, (question, context) = options, options.text
    return SpanTask(
        question, context, o.label, may_be_none, o.doc_stride, o.max_answer_length, o.n_best, o.null_threshold
    )


def _task_of_table(options: TaskOptions, table: Table, named: NamedTask | None) -> SpanTask:
    return _task(options, any(not answer_lists(table, options.label, row)[0] for row in range(len(table))))


def _task_of_model(options: TaskOptions, config: DebertaConfig, table: Table, named: NamedTask | None) -> SpanTask:
    return _task(options, options.task != "squad")


def _unlabelled(options: TaskOptions, table: Table, known: Collection[str]) -> list[int]:
    return unfindable_rows(table, options.label, options.text[1])


QUESTION_ANSWERING = TaskKind(
    head="question-answering",
    columns=_columns,
    task=_task_of_table,
    task_of_model=_task_of_model,
    unlabelled=_unlabelled,
    recognizes=_recognizes,
)
