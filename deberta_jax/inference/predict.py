"""A classifier's logits for a data set: batched, length-bucketed, sharded over the devices, in the data's order."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from deberta_jax.config import DebertaConfig
from deberta_jax.data.batches import length_buckets, pad_batch, plan_in_order
from deberta_jax.data.features import Features
from deberta_jax.data.labels import REGRESSION, SINGLE_LABEL
from deberta_jax.errors import InputError
from deberta_jax.inference.metrics import classification_metrics, regression_metrics
from deberta_jax.models import Model
from deberta_jax.ops import losses
from deberta_jax.sharding import batch_sharding, global_batch, make_mesh

Progress = Callable[[int], object]


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """The part of a batch that the models read."""
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}


class Predictor:
    """Runs a sequence classifier over features. One program is compiled per padded length, on its first use.

    Args:
      model: a sequence classifier.
      pad_id: the tokenizer's.
      max_length: tokens of the longest example.
      batch_size: rows of a batch, rounded up to what the mesh divides.
      mesh: devices to use; all by default, the batch split over them.

    Raises:
      InputError: sizes that cannot be used.
    """

    def __init__(self, model: Model, pad_id: int, *, max_length: int, batch_size: int = 32, mesh: Mesh | None = None):
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}: must be at least 1")
        if max_length < 8:
            raise InputError(f"max length {max_length}: must be at least 8")
        self.max_length = max_length
        self.mesh = make_mesh() if mesh is None else mesh
        self.pad_id = pad_id
        split = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        self.rows = -(-batch_size // split) * split

        def forward(params, batch):
            return model.apply({"params": params}, **model_inputs(batch)).logits  # pyright: ignore

        self.forward = jax.jit(forward, out_shardings=batch_sharding(self.mesh))

    def logits(self, params: Any, features: Features, progress: Progress | None = None) -> np.ndarray:
        """Float32 logits [n, C], row i for example i. ``progress`` is told the number of examples done."""
        buckets = length_buckets(features.lengths, self.max_length)
        plan = plan_in_order(features.lengths, self.rows, buckets)
        out: np.ndarray | None = None
        with jax.set_mesh(self.mesh):
            for members, length in zip(plan.members, plan.padded, strict=True):
                batch = pad_batch(features, members, self.rows, length, self.pad_id)
                logits = self.forward(params, global_batch(model_inputs(batch), self.mesh))
                found = np.asarray(jax.device_get(logits))[: len(members)]
                if out is None:
                    out = np.empty((len(features), found.shape[-1]), np.float32)
                out[members] = found
                if progress is not None:
                    progress(len(members))
        assert out is not None, "features are never empty"
        return out


def problem_of(config: DebertaConfig) -> str:
    """``regression`` or ``single_label_classification``; where the config names neither, one label is a number.

    Raises:
      InputError: several labels a text (``multi_label_classification``), which is not supported.
    """
    problem = config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE_LABEL)
    if problem not in (REGRESSION, SINGLE_LABEL) or (problem == REGRESSION and config.num_labels != 1):
        raise InputError(
            f"config.json: problem_type {problem!r} with {config.num_labels} labels is not supported; supported are "
            f"{SINGLE_LABEL!r}, and {REGRESSION!r} with one"
        )
    return problem


def score(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> Mapping[str, float | None]:
    """Loss and metrics of logits [n,C] against labels [n], as training computes the loss."""
    items = sequence_loss(jnp.asarray(logits), jnp.asarray(labels), problem_type)
    loss = {"loss": float(losses.weighted_mean(*items))}
    if problem_type == REGRESSION:
        return regression_metrics(logits[:, 0], labels) | loss
    return classification_metrics(logits, labels) | loss


def sequence_loss(logits: jax.Array, labels: jax.Array, problem_type: str) -> tuple[jax.Array, jax.Array]:
    """The loss of each example and its weight, by the problem the model is configured for."""
    if problem_type == REGRESSION:
        return losses.mean_squared_error(logits, labels)
    return losses.cross_entropy(logits, labels)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis in float64, so that what is printed sums to 1."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
