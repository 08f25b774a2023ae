"""Implements the TPU's forward kernel for texts of one block: their softmax needs no running maximum."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from deberta_jax.ops.attention.masks import MASKED_SCORE
from deberta_jax.ops.attention.pallas.layout import contract
from deberta_jax.ops.attention.pallas.tiling import TILE, Tiling
from deberta_jax.ops.attention.tpu import one_block, strips
from deberta_jax.ops.attention.tpu.words import Words, make_words
from deberta_jax.ops.products import F32


def forward_kernel(tiling: Tiling, arrays: dict[str, jax.Array], seeds: jax.Array, interpret: Any):
    """Returns the context [B,L,N*H] in the operands' dtype, and the logsumexp, float32 [B,groups,group,L]."""
    query = arrays["query"]
    block = one_block.blocks(tiling, query.shape[0])
    logsumexp = jax.ShapeDtypeStruct((query.shape[0], tiling.groups, tiling.group, tiling.padded_length), F32)
    held = make_words(tiling, query.dtype)
    return one_block.call(
        "disentangled_attention_forward",
        functools.partial(_kernel, held=held),
        tiling,
        arrays,
        {
            "context": (block["context"], jax.ShapeDtypeStruct(query.shape, query.dtype)),
            "logsumexp": (block["logsumexp"], logsumexp),
        },
        one_block.shared_scratch(tiling, arrays, held),
        seeds,
        sums_over_batch=False,
        interpret=interpret,
    )


def _kernel(tiling: Tiling, rows: int, refs: dict[str, Any], seeds: Any, norms: Any, *, held: Words) -> None:
    group, first_row = pl.program_id(0), pl.program_id(1) * rows
    one_block.put_key_ids(rows, refs)
    one_block.put_position_words(tiling, rows, refs, norms, held)
    for e in range(rows):
        random_bits = [
            strips.program_random_bits(tiling, seeds, first_row + e, group, head) for head in range(tiling.group)
        ]
        for n in range(tiling.strips):
            _attend(tiling, refs, e, n, random_bits, held)


def _attend(tiling: Tiling, refs: dict[str, Any], e: int, n: int, random_bits: list[Any], held: Words) -> None:
    """Stores context and logsumexp of strip n of row e."""
    mask = one_block.strip_mask(tiling, refs, e, n)
    value = refs["value"][e]
    contexts, maxima, totals = [], [], []
    for head, (scores, scale) in enumerate(one_block.strip_scores(tiling, refs, e, n, held)):
        scaled = [x * (scale * one_block.LOG2_E) for x in scores]  # for powers of 2
        if mask is not None:
            scaled = [jnp.where(seen, x, MASKED_SCORE) for seen, x in zip(mask, scaled, strict=True)]
        # Larger than a masked score also where all are masked: their weights are then 0.
        maximum = jnp.maximum(functools.reduce(jnp.maximum, scaled).max(axis=1, keepdims=True), MASKED_SCORE / 2)
        weights = [jnp.exp2(x - maximum) for x in scaled]
        total = functools.reduce(jnp.add, weights).sum(axis=1, keepdims=True)
        if random_bits[head] is not None:
            kept = one_block.strip_kept(tiling, random_bits[head], n)
            weights = [jnp.where(keep, x, 0.0) for keep, x in zip(kept, weights, strict=True)]
        contexts.append(contract(one_block.joined([x.astype(value.dtype) for x in weights]), value, 1, 0))
        maxima.append(jnp.broadcast_to(maximum, (TILE, tiling.lanes)))
        totals.append(jnp.broadcast_to(total, (TILE, tiling.lanes)))
    total = one_block.select_heads(tiling, totals) + 1e-30  # 0 where all are masked, else at least 1
    context = one_block.select_heads(tiling, contexts) * (1.0 / (total * (1.0 - tiling.dropout_rate)))
    refs["context"][e, one_block.strip(n)] = context.astype(refs["context"].dtype)
    logsumexp = (one_block.select_heads(tiling, maxima) + jnp.log2(total)) * (1.0 / one_block.LOG2_E)
    by_lane = logsumexp.T
    for head in range(tiling.group):
        lane = head * tiling.lanes_per_head
        refs["logsumexp"][e, 0, head : head + 1, one_block.strip(n)] = by_lane[lane : lane + 1]
