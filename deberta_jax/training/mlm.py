"""Masked language modelling: the loss of every target, without a tensor of logits over the vocabulary."""

from collections.abc import Mapping
from typing import Any

import jax

from deberta_jax.models import DebertaForMaskedLM
from deberta_jax.ops.linear_cross_entropy import TargetResults, linear_cross_entropy

_INPUTS = ("input_ids", "attention_mask", "segment_ids", "positions")


def masked_lm_results(
    model: DebertaForMaskedLM,
    params: Any,
    batch: Mapping[str, jax.Array],
    uniform: jax.Array | None = None,
    **options: Any,
) -> TargetResults:
    """Returns the loss of every target [B,P], and whether the model's best guess is right.

    Args:
      uniform: float32 [B,P] in [0, 1); with it also a token is sampled for every target.
      options: keyword arguments of the model, such as ``deterministic``.
    """
    inputs = {name: batch[name] for name in _INPUTS if name in batch}
    out: Any = model.apply({"params": params}, **inputs, return_projection_inputs=True, **options)
    return linear_cross_entropy(
        out.states, out.table, out.bias, batch["labels"], uniform=uniform, gradient_dtype=model.gradient_dtype
    )
