"""One answer a text or pair: a class, several labels, or a number."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.data.features import Features, make_features
from deberta_jax.data.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL, LabelSpec, encode_labels
from deberta_jax.data.table import Table
from deberta_jax.inference.metrics import classification_metrics, multi_label_metrics, regression_metrics
from deberta_jax.inference.tasks.base import Metrics
from deberta_jax.ops import losses
from deberta_jax.ops.losses import Items
from deberta_jax.text import Tokenizer

_METRICS = {
    SINGLE_LABEL: ("accuracy", "f1", "matthews_correlation", "loss"),
    MULTI_LABEL: ("f1", "micro_f1", "accuracy", "loss"),
    REGRESSION: ("pearson", "spearman", "loss"),
}


@dataclasses.dataclass(frozen=True)
class TextTask:
    """``text``: one column, or two of a pair. ``label``: its column, or several of 0 and 1. ``group``: rows of one
    value in this column are one question, of which ``exact_match`` wants all right. ``usual``: the task's own metric,
    where it is not its kind's first."""

    text: tuple[str, ...]
    label: tuple[str, ...]
    spec: LabelSpec
    group: str = ""
    usual: str = ""
    head: str = "sequence-classification"
    per_token: bool = False

    @property
    def metric_names(self) -> tuple[str, ...]:
        return (*_METRICS[self.spec.problem_type], *(("exact_match",) if self.group else ()))

    @property
    def metric(self) -> str:
        return self.usual or self.metric_names[0]

    def configure(self, config: DebertaConfig) -> DebertaConfig:
        return dataclasses.replace(config, id2label=self.spec.names, problem_type=self.spec.problem_type)

    def describe(self) -> str:
        if self.spec.problem_type == REGRESSION:
            return "labels: numbers, so this is a regression"
        several = " (several may hold)" if self.spec.problem_type == MULTI_LABEL else ""
        return f"labels{several}: {', '.join(f'{i} = {name}' for i, name in enumerate(self.spec.names))}"

    def features(self, table: Table, tokenizer: Tokenizer, max_length: int, *, labelled: bool) -> Features:
        labels = encode_labels(table, self.label, self.spec) if labelled else None
        texts = [table.texts(column) for column in self.text]
        pairs = texts[1] if len(texts) > 1 else None
        return make_features(tokenizer, texts[0], pairs, max_length=max_length, labels=labels)

    def loss(self, out: Any, batch: Mapping[str, jax.Array]) -> Items:
        return sequence_loss(out.logits, batch["labels"], self.spec.problem_type)

    def read(self, out: Any) -> jax.Array:
        return out.logits

    def metrics(self, found: np.ndarray, features: Features, table: Table) -> Metrics:
        assert features.labels is not None
        metrics = score(found, features.labels, self.spec.problem_type)
        if not self.group:
            return metrics
        wrong = {
            group
            for group, right in zip(table.column(self.group), found.argmax(-1) == features.labels, strict=True)
            if not right
        }
        return {**metrics, "exact_match": 1 - len(wrong) / len(set(table.column(self.group)))}

    def answers(self, found: np.ndarray, features: Features, table: Table) -> list[dict[str, Any]]:
        return [text_answer(row, self.spec) for row in found]

    def details(self, found: np.ndarray, features: Features, table: Table) -> dict[str, Any]:
        labels, names = features.labels, self.spec.names
        assert labels is not None
        if self.spec.problem_type == REGRESSION:
            return {"scatter": [labels.tolist(), found[:, 0].tolist()]}
        if self.spec.problem_type == MULTI_LABEL:
            return {"by_label": by_label(found > 0, labels > 0.5, names)}
        guess, shares = found.argmax(-1), probabilities(found).max(-1)
        wrong = np.flatnonzero(guess != labels)
        worst = wrong[np.argsort(-shares[wrong], kind="stable")][:10]
        return confusion(guess, labels, names) | {
            "wrong": [[table.where(i), names[labels[i]], names[guess[i]], float(shares[i])] for i in worst.tolist()]
        }


def text_answer(logits: np.ndarray, spec: LabelSpec) -> dict[str, Any]:
    """What ``predict`` says of one text's logits [C]."""
    if spec.problem_type == REGRESSION:
        return {"label": spec.names[0], "score": float(logits[0])}
    if spec.problem_type == MULTI_LABEL:
        shares = (1 / (1 + np.exp(-logits.astype(np.float64)))).tolist()
        held = [name for name, share in zip(spec.names, shares, strict=True) if share >= 0.5]
        return {"labels": held, "probabilities": dict(zip(spec.names, shares, strict=True))}
    shares = probabilities(logits).tolist()
    return {"label": spec.names[int(logits.argmax())], "probabilities": dict(zip(spec.names, shares, strict=True))}


def sequence_loss(logits: jax.Array, labels: jax.Array, problem_type: str) -> Items:
    """The loss of each text and its weight, by the problem the model is configured for.

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
    """The mean of ``sequence_loss`` of logits [n,C] over all that has a weight, as one program."""
    return losses.weighted_mean(*sequence_loss(jnp.asarray(logits), jnp.asarray(labels), problem_type))


def score(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> Metrics:
    """Loss and metrics of logits [n,C] against labels [n] or [n,C], as training computes the loss."""
    loss = {"loss": float(mean_loss(logits, labels, problem_type))}
    if problem_type == REGRESSION:
        return regression_metrics(logits[:, 0], labels) | loss
    if problem_type == MULTI_LABEL:
        return multi_label_metrics(logits, labels) | loss
    return classification_metrics(logits, labels) | loss


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis in float64, so that what is printed sums to 1."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def confusion(guess: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Counts of (true, predicted) labels."""
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (truth, guess), 1)
    return {"labels": list(names), "confusion": counts.tolist()}


def by_label(guess: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> dict[str, list[float]]:
    """precision, recall, f1 and number of each column of [n, C]."""
    right = (guess & truth).sum(0)
    precision, recall = right / np.maximum(guess.sum(0), 1), right / np.maximum(truth.sum(0), 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    columns = zip(precision, recall, f1, truth.sum(0), strict=True)
    return {name: [float(value) for value in values] for name, values in zip(names, columns, strict=True)}
