"""Adds a head and a kind of task from outside the package, as a user would: mean pooling, and ordinal regression.

The head averages the vectors of a text's tokens and reads one logit for each threshold between two neighbouring levels.
The task learns levels in an order, such as stars: the label is how many thresholds a text passes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.data.features import Features, make_features
from deberta_jax.data.labels import LabelIds
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError
from deberta_jax.models import HEADS, HeadOutput, HeadSpec, Model
from deberta_jax.tasks import TASK_KINDS, NamedTask, Task, TaskOptions
from deberta_jax.text import Tokenizer


class _MLP(nn.Module):
    width: int
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.outputs, name="output")(jnp.tanh(nn.Dense(self.width, name="hidden")(x)))


class MeanPoolingModel(Model[HeadOutput]):
    """Returns logits [B,C-1] of each text, or [B,P,C-1] of the texts that start at ``positions`` in packed rows."""

    @nn.compact
    def forward(self, input_ids=None, *, positions=None, **inputs) -> HeadOutput:
        h = self.backbone(input_ids, inputs)
        texts = inputs.get("segment_ids")
        texts = inputs.get("attention_mask") if texts is None else texts
        texts = jnp.ones(h.states.shape[:2], jnp.int32) if texts is None else texts
        starts = h.starts[:, :1] if positions is None else positions
        of_start = jnp.take_along_axis(texts, jnp.maximum(starts, 0), axis=1)[..., None]
        weights = ((texts[:, None, :] == of_start) & (texts[:, None, :] != 0)).astype(jnp.float32)
        total = jnp.einsum("BPT,BTD->BPD", weights, h.states.astype(jnp.float32))
        mean = total / jnp.maximum(weights.sum(-1, keepdims=True), 1)
        logits = _MLP(self.config.hidden_size, self.config.num_labels - 1, name="mlp")(mean)
        return HeadOutput(logits[:, 0] if positions is None else logits, h.hidden_states, h.attentions)


@dataclasses.dataclass(frozen=True)
class OrdinalTask(Task):
    """Predicts one of several levels that have an order."""

    head: ClassVar[str] = "mean-pooling"
    text: str
    label: str
    names: tuple[str, ...]
    metric_names: ClassVar[tuple[str, ...]] = ("accuracy", "mean_error", "loss")

    def configure(self, config: DebertaConfig) -> DebertaConfig:
        return dataclasses.replace(config, id2label=self.names, problem_type=None)

    def describe(self) -> str:
        return f"levels: {' < '.join(self.names)}"

    def features(self, table: Table, tokenizer: Tokenizer, max_length: int, *, labelled: bool) -> Features:
        labels = self._levels(table) if labelled else None
        return make_features(tokenizer, table.texts(self.text), None, max_length=max_length, labels=labels)

    def _levels(self, table: Table) -> np.ndarray:
        ids = LabelIds(self.names)
        levels = [ids.find(str(value)) for value in table.column(self.label)]
        if None in levels:
            raise InputError(f"{table.where(levels.index(None))}: no level in {self.label!r}")
        return np.array(levels, np.int32)

    def loss(self, out: Any, batch: Mapping[str, jax.Array]):
        labels = batch["labels"]
        thresholds = jnp.broadcast_to(jnp.arange(len(self.names) - 1), out.logits.shape)
        passed = (labels[..., None] > thresholds).astype(jnp.float32)
        value = -(jax.nn.log_sigmoid(out.logits) * passed + jax.nn.log_sigmoid(-out.logits) * (1 - passed)).sum(-1)
        weight = (labels >= 0).astype(jnp.float32)
        return value * weight, weight

    def metrics(self, logits: np.ndarray, features: Features, table: Table) -> dict[str, float | None]:
        assert features.labels is not None
        level = (logits > 0).sum(-1)
        error = np.abs(level - features.labels)
        passed = features.labels[:, None] > np.arange(len(self.names) - 1)
        loss = np.logaddexp(0, np.where(passed, -logits, logits)).sum(-1).mean()
        return {"accuracy": float((error == 0).mean()), "mean_error": float(error.mean()), "loss": float(loss)}

    def answers(self, logits: np.ndarray, features: Features, table: Table) -> list[dict[str, Any]]:
        return [{"level": self.names[int((row > 0).sum())], "thresholds": row.tolist()} for row in logits]


def _task(options: TaskOptions, table: Table, named: NamedTask | None) -> OrdinalTask:
    levels = {str(value) for value in table.column(options.label)}
    order = sorted(levels, key=lambda level: (float(level) if level.isdecimal() else 0.0, level))
    return OrdinalTask(options.text[0], options.label, tuple(order))


def _task_of_model(options: TaskOptions, config: DebertaConfig, table: Table, named: NamedTask | None) -> OrdinalTask:
    return OrdinalTask(options.text[0], options.label, config.id2label)


HEADS["mean-pooling"] = HeadSpec(
    model=MeanPoolingModel,
    parts=("mlp",),
    transformers="ForMeanPooling",
    num_outputs=lambda config: config.num_labels - 1,
    num_labels_of=lambda rows: rows + 1,
    named_labels=True,
    classifier="mlp.output.weight",
)
TASK_KINDS["ordinal-regression"] = dataclasses.replace(
    TASK_KINDS["text-classification"],
    head="mean-pooling",
    task=_task,
    task_of_model=_task_of_model,
    with_labels=None,
    check_config=lambda config: None,
)
