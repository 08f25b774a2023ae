"""Defines reranking: a number for a query and a passage, by which the passages of each query are ranked."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.data.features import Features, make_features
from deberta_jax.data.labels import (
    MULTI_LABEL,
    REGRESSION,
    LabelSpec,
    encode_labels,
    generic_names,
    label_name,
    unlabelled_rows,
)
from deberta_jax.data.streaming import divided
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError
from deberta_jax.ops.losses import Items
from deberta_jax.tasks.activations import IDENTITY, SIGMOID, find_activation, saved_activation, with_activation
from deberta_jax.tasks.base import Metrics, NamedTask, Task, TaskKind, TaskOptions
from deberta_jax.tasks.columns import Columns, first_columns, label_column
from deberta_jax.tasks.metrics import ranking_metrics
from deberta_jax.tasks.text_classification import mean_loss, sequence_loss
from deberta_jax.text import Tokenizer

_TEXTS = (
    ("query", "passage"),
    ("query", "document"),
    ("query", "text"),
    ("query", "answer"),
    ("question", "passage"),
    ("question", "answer"),
)
_LABELS = ("label", "labels", "relevance", "score", "target")
_TRUTH = {"false": 0, "true": 1}
_ROWS = 1 << 14
"""Rows whose labels are read at once."""


@dataclasses.dataclass(frozen=True)
class RerankingTask(Task):
    """Predicts how relevant a passage is to a query. Rows with the same text in the query's column are one query.

    Attributes:
      text: the columns of queries and passages.
      label: the column of labels: numbers; 0 and less means not relevant.
      problem: as in ``config.json``: several independent labels, of which there is one, for labels of 0 and 1, so that
        the loss is the binary cross-entropy; or a regression.
      names: the name of the model's one label.
      activation: the name of the function that makes scores of logits.
    """

    head: ClassVar[str] = "sequence-classification"
    metric_names: ClassVar[tuple[str, ...]] = ("ndcg@10", "mrr@10", "map", "loss")
    text: tuple[str, ...]
    label: str
    problem: str
    names: tuple[str, ...]
    activation: str

    @property
    def sift(self) -> Literal["numbers"]:
        return "numbers"

    def with_labels_of(self, config: DebertaConfig) -> "Task":
        return dataclasses.replace(self, names=config.id2label) if config.num_labels == 1 else self

    def configure(self, config: DebertaConfig) -> DebertaConfig:
        extra = with_activation(config.extra, self.activation)
        return dataclasses.replace(config, id2label=self.names, problem_type=self.problem, extra=extra)

    def describe(self) -> str:
        if self.problem == REGRESSION:
            return "labels: numbers, so this is a regression, and the scores are logits"
        return "labels: 0 and 1, so the scores are probabilities"

    def features(self, table: Table, tokenizer: Tokenizer, max_length: int, *, labelled: bool) -> Features:
        queries, passages = (table.texts(column) for column in self.text)
        labels = _relevance(table, self.label) if labelled else None
        return make_features(tokenizer, queries, passages, max_length=max_length, labels=labels)

    def loss(self, out: Any, batch: Mapping[str, jax.Array]) -> Items:
        return sequence_loss(out.logits, batch["labels"][..., None], self.problem)

    def metrics(self, logits: np.ndarray, features: Features, table: Table) -> Metrics:
        """Returns the metrics. The binary cross-entropy of labels outside 0 to 1, such as grades, is None."""
        labels = features.labels
        assert labels is not None
        defined = self.problem == REGRESSION or (labels.min() >= 0 and labels.max() <= 1)
        loss = float(mean_loss(logits, labels[:, None], self.problem)) if defined else None
        return ranking_metrics(logits[:, 0], labels, table.column(self.text[0])) | {"loss": loss}

    def answers(self, logits: np.ndarray, features: Features, table: Table) -> list[dict[str, Any]]:
        scores = find_activation(self.activation, "config.json")(logits[:, 0])
        return [{"score": score} for score in scores.tolist()]


def check_one_label(config: DebertaConfig) -> None:
    """Raises InputError for the config of a model that has more than one label."""
    if config.num_labels != 1:
        raise InputError(f"--task reranking: needs a model with one label, and this one has {config.num_labels}")


def _relevance(table: Table, column: str) -> np.ndarray:
    """Returns the labels of all rows, float32 [n]; true is 1. Raises InputError for a label that is no number."""
    numbers = []
    for value in table.column(column):
        try:
            numbers.append(_TRUTH.get(label_name(value) or "", value))
        except ValueError:
            numbers.append(value)  # encode_labels refuses it
    return encode_labels(table.with_columns({column: numbers}), (column,), LabelSpec(REGRESSION, generic_names(1)))


def _columns(table: Table, options: TaskOptions, labelled: bool) -> Columns:
    if len(options.text) == 1:
        raise InputError(f"--text {options.text[0]}: reranking needs two columns, of the queries and of the passages")
    text = options.text or first_columns(table, _TEXTS)
    return Columns(text, options.label or (label_column(table, _LABELS) if labelled else ""))


def _task(options: TaskOptions, table: Table, named: NamedTask | None) -> RerankingTask:
    found = (np.unique(_relevance(part.table(), options.label)) for part in divided(table, _ROWS))
    labels = np.unique(np.concatenate(list(found)))
    if len(labels) == 1:
        raise InputError(f"{table.name}: every row of {options.label!r} is {labels[0]:g}; no passage is better")
    binary = bool(np.isin(labels, (0, 1)).all())
    problem, activation = (MULTI_LABEL, SIGMOID) if binary else (REGRESSION, IDENTITY)
    return RerankingTask(options.text, options.label, problem, generic_names(1), activation)


def _task_of_model(options: TaskOptions, config: DebertaConfig, table: Table, named: NamedTask | None) -> RerankingTask:
    check_one_label(config)
    problem = REGRESSION if config.problem_type == REGRESSION else MULTI_LABEL
    activation = saved_activation(config)
    find_activation(activation, "config.json")
    return RerankingTask(options.text, options.label, problem, config.id2label, activation)


def _unlabelled(options: TaskOptions, table: Table, known: Collection[str]) -> list[int]:
    return unlabelled_rows(table, (options.label,))


RERANKING = TaskKind(
    head="sequence-classification",
    columns=_columns,
    task=_task,
    task_of_model=_task_of_model,
    unlabelled=_unlabelled,
    check_config=check_one_label,
)
