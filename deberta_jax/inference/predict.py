"""A model's answers for a data set: batched, length-bucketed, sharded over the devices, in the data's order."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from deberta_jax.data.batches import length_buckets, pad_texts, plan_in_order
from deberta_jax.data.features import Features
from deberta_jax.errors import InputError
from deberta_jax.models import Model, spec_of_model
from deberta_jax.sharding import batch_sharding, global_batch, make_mesh, row_share

Progress = Callable[[int], object]

_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "segment_ids", "positions")


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """The part of a batch that the models read."""
    return {name: batch[name] for name in _INPUTS if name in batch}


class Predictor:
    """Runs a model over features. One program is compiled per padded length, on its first use.

    With several processes all must call; each reads its share of the rows and all get all answers.

    Args:
      model: any with a head.
      pad_id: the tokenizer's.
      max_length: tokens of the longest text.
      batch_size: rows of a batch, rounded up to what the mesh divides.
      mesh: devices to use; all by default, the batch split over them.

    Raises:
      InputError: sizes that cannot be used.
    """

    def __init__(
        self,
        model: Model,
        pad_id: int,
        *,
        max_length: int,
        batch_size: int = 32,
        mesh: Mesh | None = None,
    ):
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}: must be at least 1")
        if max_length < 8:
            raise InputError(f"max length {max_length}: must be at least 8")
        self.max_length = max_length
        self.mesh = make_mesh() if mesh is None else mesh
        self.pad_id = pad_id
        _, spec = spec_of_model(model)
        self.per_token = spec.per_token
        split = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        self.rows = -(-batch_size // split) * split
        self.share = row_share(self.mesh)

        def forward(params, batch):
            inputs = model_inputs(batch)
            if model.reads_choices:  # a choice is read as the one text of its row
                inputs["positions"] = jax.numpy.zeros((batch["input_ids"].shape[0], 1), jax.numpy.int32)
            return spec.read(model.apply({"params": params}, **inputs))

        self.forward = jax.jit(forward, out_shardings=batch_sharding(self.mesh))

    def logits(self, params: Any, features: Features, progress: Progress | None = None) -> np.ndarray:
        """Float32 [n, K], row i for text i, or with ``per_token`` [N, K], beside ``features.ids``. Texts of no tokens
        get 0. ``progress`` is told the number of texts done."""
        buckets = length_buckets(features.lengths, self.max_length)
        plan = plan_in_order(features.lengths, self.rows, buckets)
        out: np.ndarray | None = None
        with jax.set_mesh(self.mesh):
            for members, length in zip(plan.members, plan.padded, strict=True):
                local = self.share.rows(self.rows)
                batch = pad_texts(features, members[local[local < len(members)]], len(local), length, self.pad_id)
                found = self._gather(self.forward(params, global_batch(batch, self.mesh)))[: len(members)]
                if out is None:
                    count = len(features.ids if self.per_token else features.lengths)
                    out = np.zeros((count, found.shape[-1]), np.float32)
                if self.per_token:
                    for row, text in enumerate(members):
                        start, end = features.starts[text], features.starts[text + 1]
                        out[start:end] = found[row, : end - start]
                else:
                    out[members] = found
                if progress is not None:
                    progress(len(members))
        assert out is not None, "features are never empty"
        return out

    def _gather(self, array: jax.Array) -> np.ndarray:
        if array.is_fully_addressable:
            return np.asarray(jax.device_get(array))
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
