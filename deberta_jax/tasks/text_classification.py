"""Defines the kinds of task with one answer for a text or a pair of texts: a class, several labels, or a number."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.data.features import Features, make_features
from deberta_jax.data.labels import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    LabelSpec,
    discover_labels,
    encode_labels,
    same_labels,
    unlabelled_rows,
)
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError, shown
from deberta_jax.ops import losses
from deberta_jax.ops.losses import Items
from deberta_jax.tasks.activations import sigmoid
from deberta_jax.tasks.base import Metrics, NamedTask, PipelineInputs, Task, TaskKind, TaskOptions
from deberta_jax.tasks.columns import Columns, guess_text, label_column
from deberta_jax.tasks.metrics import classification_metrics, multi_label_metrics, regression_metrics
from deberta_jax.text import Tokenizer

_LARGEST_MATRIX, _LISTED = 200, 100

_LABELS = ("label", "labels", "target", "class", "category", "score", "gold_label", "sentiment", "y")

_METRICS = {
    SINGLE_LABEL: ("accuracy", "f1", "matthews_correlation", "loss"),
    MULTI_LABEL: ("f1", "micro_f1", "accuracy", "loss"),
    REGRESSION: ("pearson", "spearman", "loss"),
}


@dataclasses.dataclass(frozen=True)
class TextTask(Task):
    """Predicts a class, several labels or a number for each text or pair.

    Attributes:
      text: the column of texts, or two columns of pairs.
      label: the column of labels, or several columns of 0 and 1.
      spec: the problem (classes, several labels, or a number) and the names of the labels.
      group: column of the question that a row belongs to; ``exact_match`` counts questions with all rows right.
      usual: the metric of a named task; empty for the first of ``metric_names``.
    """

    head: ClassVar[str] = "sequence-classification"
    text: tuple[str, ...]
    label: tuple[str, ...]
    spec: LabelSpec
    group: str = ""
    usual: str = ""

    @property
    def metric_names(self) -> tuple[str, ...]:
        return (*_METRICS[self.spec.problem_type], *(("exact_match",) if self.group else ()))

    @property
    def metric(self) -> str:
        return self.usual or self.metric_names[0]

    @property
    def sift(self) -> Literal["classes", "numbers"]:
        return "numbers" if self.spec.problem_type == REGRESSION else "classes"

    def with_labels_of(self, config: DebertaConfig) -> "Task":
        if self.spec.problem_type == REGRESSION or not same_labels(config.id2label, self.spec.names):
            return self
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, names=config.id2label))

    def configure(self, config: DebertaConfig) -> DebertaConfig:
        return dataclasses.replace(config, id2label=self.spec.names, problem_type=self.spec.problem_type)

    def describe(self) -> str:
        if self.spec.problem_type == REGRESSION:
            return "labels: numbers, so this is a regression"
        several = " (several may hold)" if self.spec.problem_type == MULTI_LABEL else ""
        names = self.spec.names
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        return f"labels{several}: {', '.join(f'{i} = {name}' for i, name in enumerate(names[:_LISTED]))}{more}"

    def features(self, table: Table, tokenizer: Tokenizer, max_length: int, *, labelled: bool) -> Features:
        labels = encode_labels(table, self.label, self.spec) if labelled else None
        texts = [table.texts(column) for column in self.text]
        pairs = texts[1] if len(texts) > 1 else None
        return make_features(tokenizer, texts[0], pairs, max_length=max_length, labels=labels)

    def loss(self, out: Any, batch: Mapping[str, jax.Array]) -> Items:
        return sequence_loss(out.logits, batch["labels"], self.spec.problem_type)

    def metrics(self, logits: np.ndarray, features: Features, table: Table) -> Metrics:
        assert features.labels is not None
        metrics = score(logits, features.labels, self.spec.problem_type)
        if not self.group:
            return metrics
        wrong = {
            group
            for group, right in zip(table.column(self.group), logits.argmax(-1) == features.labels, strict=True)
            if not right
        }
        return {**metrics, "exact_match": 1 - len(wrong) / len(set(table.column(self.group)))}

    def answers(self, logits: np.ndarray, features: Features, table: Table) -> list[dict[str, Any]]:
        return [text_answer(row, self.spec) for row in logits]

    def details(self, logits: np.ndarray, features: Features, table: Table) -> dict[str, Any]:
        labels, names = features.labels, self.spec.names
        assert labels is not None
        if self.spec.problem_type == REGRESSION:
            return {"scatter": [labels.tolist(), logits[:, 0].tolist()]}
        if self.spec.problem_type == MULTI_LABEL:
            return {"by_label": by_label(logits > 0, labels > 0.5, names)}
        wrong = [[m["where"], m["label"], m["answer"], m["confidence"]] for m in self.mistakes(logits, features, table)]
        return confusion(logits.argmax(-1), labels, names) | {"wrong": wrong[:10]}

    def mistakes(self, logits: np.ndarray, features: Features, table: Table) -> list[dict[str, Any]]:
        """Returns the rows with a wrong answer, as ``Task.mistakes``.

        The confidence is the probability of the wrong class, or of the most probable wrong decision about one of
        several labels. Of numbers it is the distance from the label, and every row that has one is listed.
        """
        labels, names = features.labels, self.spec.names
        assert labels is not None
        truth: list[Any]
        answer: list[Any]
        if self.spec.problem_type == REGRESSION:
            truth, answer = labels.tolist(), logits[:, 0].tolist()
            confidence = np.abs(labels - logits[:, 0]).astype(np.float64)
            wrong = np.flatnonzero(confidence)
        elif self.spec.problem_type == MULTI_LABEL:
            pick = lambda chosen: [[names[k] for k in np.flatnonzero(row)] for row in chosen]
            truth, answer = pick(labels > 0.5), pick(logits > 0)
            certain = sigmoid(np.abs(logits).astype(np.float64))
            confidence = np.where((logits > 0) != (labels > 0.5), certain, 0).max(-1)
            wrong = np.flatnonzero(confidence)
        else:
            guess = logits.argmax(-1)
            truth, answer = [names[i] for i in labels], [names[i] for i in guess]
            confidence = probabilities(logits).max(-1)
            wrong = np.flatnonzero(guess != labels)
        return [
            {
                "where": table.where(i),
                **{column: table.columns[column][i] for column in self.text},
                "label": truth[i],
                "answer": answer[i],
                "confidence": float(confidence[i]),
            }
            for i in wrong[np.argsort(-confidence[wrong], kind="stable")].tolist()
        ]


def text_answer(logits: np.ndarray, spec: LabelSpec) -> dict[str, Any]:
    """Returns what ``predict`` writes for the logits [C] of one text: label and probabilities, or the number."""
    if spec.problem_type == REGRESSION:
        return {"label": spec.names[0], "score": float(logits[0])}
    if spec.problem_type == MULTI_LABEL:
        by_name = dict(zip(spec.names, sigmoid(logits.astype(np.float64)).tolist(), strict=True))
        return {"labels": [name for name, p in by_name.items() if p >= 0.5], "probabilities": by_name}
    by_name = dict(zip(spec.names, probabilities(logits).tolist(), strict=True))
    return {"label": spec.names[int(logits.argmax())], "probabilities": by_name}


def sequence_loss(logits: jax.Array, labels: jax.Array, problem_type: str) -> Items:
    """Returns the loss of each text and its weight, by the problem that the model is configured for.

    Args:
      logits: [..., C]. labels: [...], or [..., C] for several labels a text.
    """
    if problem_type == REGRESSION:
        return losses.mean_squared_error(logits, labels)
    if problem_type == MULTI_LABEL:
        return losses.binary_cross_entropy(logits, labels)
    return losses.cross_entropy(logits, labels)


@functools.partial(jax.jit, static_argnames="problem_type")
def mean_loss(
    logits: jax.Array | np.ndarray, labels: jax.Array | np.ndarray, problem_type: str = SINGLE_LABEL
) -> jax.Array:
    """Returns the mean of ``sequence_loss`` of logits [n,C] over all items that have a weight, as one program."""
    return losses.weighted_mean(*sequence_loss(jnp.asarray(logits), jnp.asarray(labels), problem_type))


def score(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> Metrics:
    """Returns loss and metrics of logits [n,C] against labels [n] or [n,C]; the loss is that of training."""
    loss = {"loss": float(mean_loss(logits, labels, problem_type))}
    if problem_type == REGRESSION:
        return regression_metrics(logits[:, 0], labels) | loss
    if problem_type == MULTI_LABEL:
        return multi_label_metrics(logits, labels) | loss
    return classification_metrics(logits, labels) | loss


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Returns the softmax over the last axis in float64, so that printed probabilities sum to 1."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def confusion(guess: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Returns the names of the labels and the confusion matrix, [true label, predicted label], as lists.

    With more than 200 labels, whose matrix would be large and nearly empty, returns the number of predicted labels and
    the pairs of labels that were confused most often, with their numbers.
    """
    if len(names) > _LARGEST_MATRIX:
        wrong = guess != truth
        pairs, counts = np.unique(np.stack([truth[wrong], guess[wrong]]), axis=1, return_counts=True)
        most = np.argsort(-counts, kind="stable")[:20]
        confused = [[*(names[int(i)] for i in pairs[:, k]), int(counts[k])] for k in most]
        return {"predicted_labels": len(np.unique(guess)), "confused": confused}
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (truth, guess), 1)
    return {"labels": list(names), "confusion": counts.tolist()}


def by_label(guess: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> dict[str, list[float]]:
    """Returns precision, recall, f1 and number of true rows for each label, from booleans [n, C]."""
    correct = (guess & truth).sum(0)
    precision, recall = correct / np.maximum(guess.sum(0), 1), correct / np.maximum(truth.sum(0), 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    columns = zip(precision, recall, f1, truth.sum(0), strict=True)
    return {name: [float(value) for value in values] for name, values in zip(names, columns, strict=True)}


def problem_of(config: DebertaConfig) -> str:
    """Returns the config's ``problem_type``. By default one label is a regression, and several are classes.

    Raises:
      InputError: a regression has several outputs.
    """
    problem = config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE_LABEL)
    if problem == REGRESSION and config.num_labels != 1:
        raise InputError(
            f"config.json: problem_type {problem!r} with {config.num_labels} labels is not supported; supported are "
            f"{SINGLE_LABEL!r}, {MULTI_LABEL!r}, and {REGRESSION!r} with one"
        )
    return problem


def _columns(table: Table, options: TaskOptions, labelled: bool) -> Columns:
    label = options.label
    if labelled and not (label or options.labels):
        label = label_column(table, _LABELS)
    return Columns(options.text or guess_text(table, label), label)


def _task(options: TaskOptions, spec: LabelSpec, named: NamedTask | None) -> TextTask:
    columns = options.labels or (options.label,)
    return TextTask(options.text, columns, spec, named.group if named else "", named.metric if named else "")


def _classification(options: TaskOptions, table: Table, named: NamedTask | None) -> TextTask:
    if options.labels:
        return _task(options, LabelSpec(MULTI_LABEL, options.labels), named)
    names = named.names if named else ()
    return _task(options, LabelSpec(SINGLE_LABEL, names) if names else discover_labels(table, options.label), named)


def _regression(options: TaskOptions, table: Table, named: NamedTask | None) -> TextTask:
    if options.labels:
        return _classification(options, table, named)
    return _task(options, LabelSpec(REGRESSION, ("LABEL_0",)), named)


def _unlabelled(options: TaskOptions, table: Table, known: Collection[str]) -> list[int]:
    return unlabelled_rows(table, options.labels or (options.label,), known)


def read_text_or_pair(item: Any, where: str) -> tuple[str, str | None]:
    """Returns the text of an input and the second text of a pair, or None.

    Args:
      item: a text, a tuple of two, or ``{"text": ..., "text_pair": ...}``.
      where: the name of the input for messages.

    Raises:
      InputError: the input has another form.
    """
    if isinstance(item, str):
        return item, None
    if isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item):
        return item
    if isinstance(item, Mapping) and isinstance(item.get("text"), str):
        pair = item.get("text_pair")
        if (pair is None or isinstance(pair, str)) and not set(item) - {"text", "text_pair"}:
            return item["text"], pair
    raise InputError(
        f"{where}: cannot read {shown(item)}; give a str, a tuple of two, or {{'text': ..., 'text_pair': ...}}"
    )


def _pipeline_inputs(items: Sequence[Any], where: Callable[[int], str]) -> PipelineInputs:
    """Reads texts or pairs. Raises InputError for others, and if only some are pairs."""
    parts = [read_text_or_pair(item, where(i)) for i, item in enumerate(items)]
    pairs = [pair for _, pair in parts if pair is not None]
    if pairs and len(pairs) < len(parts):
        raise InputError("some inputs have a text_pair and some have none; give one kind at a time")
    columns: dict[str, list[Any]] = {"text": [text for text, _ in parts]}
    if pairs:
        columns["text_pair"] = pairs
    return PipelineInputs(Table("the input", columns, range(len(parts))), Columns(tuple(columns), ""))


def _task_of_model(options: TaskOptions, config: DebertaConfig, table: Table, named: NamedTask | None) -> TextTask:
    return _task(options, LabelSpec(problem_of(config), config.id2label), named)


CLASSIFICATION = TaskKind(
    head="sequence-classification",
    columns=_columns,
    task=_classification,
    task_of_model=_task_of_model,
    unlabelled=_unlabelled,
    with_labels="multi-label",
    pipeline_inputs=_pipeline_inputs,
    check_config=problem_of,
)
REGRESSION_KIND = dataclasses.replace(CLASSIFICATION, task=_regression, pipeline_inputs=None)
MULTI_LABEL_KIND = dataclasses.replace(CLASSIFICATION, pipeline_inputs=None)
