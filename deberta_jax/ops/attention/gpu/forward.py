"""Implements the GPU's forward kernel: one pass over the keys by online softmax (Milakov and Gimelshein 2018)."""

from typing import Any

import jax.numpy as jnp

from deberta_jax.ops.attention.gpu import block_pair
from deberta_jax.ops.attention.gpu.block_pair import KernelProgram
from deberta_jax.ops.attention.masks import MASKED_SCORE
from deberta_jax.ops.attention.pallas.layout import contract
from deberta_jax.ops.products import F32


def attend(program: KernelProgram) -> None:
    """Stores the context and the logsumexp of one block of queries."""
    tiling = program.tiling
    query = program.load_block("query", program.outer)

    def step(state, number, _, scores, __):
        before, running_sum, accumulator = state
        scores, mask = block_pair.mask_scores(program, scores, number)
        running_max = jnp.maximum(before, scores.max(axis=1))
        weights = jnp.exp(scores - running_max[:, None])
        if mask is not None:  # where all keys so far were masked, a masked score equals the maximum
            weights = jnp.where(mask, weights, 0.0)
        rescale = jnp.exp(before - running_max)
        running_sum = running_sum * rescale + weights.sum(axis=1)
        keep = block_pair.kept_weights(program, number)
        if keep is not None:
            weights = jnp.where(keep, weights, 0.0)
        value = program.load_block("value", number)
        accumulator = accumulator * rescale[:, None] + contract(weights.astype(value.dtype), value, 1, 0)
        return running_max, running_sum, accumulator

    start: Any = (
        jnp.full((tiling.block_size,), MASKED_SCORE, F32),
        jnp.zeros((tiling.block_size,), F32),
        jnp.zeros((tiling.block_size, tiling.lanes_per_head), F32),
    )
    running_max, running_sum, accumulator = block_pair.for_each_inner(program, query, step, start)
    running_sum = jnp.where(running_sum == 0.0, 1.0, running_sum)
    context = accumulator / (running_sum * (1.0 - tiling.dropout_rate))[:, None]
    program.store_block("context", program.outer, context)
    if "context_rest" in program.refs:
        rounded = context.astype(program.refs["context"].dtype).astype(F32)
        program.store_block("context_rest", program.outer, context - rounded)
    tokens = program.tokens(program.outer)
    program.refs["logsumexp"][program.example, program.head, tokens] = running_max + jnp.log(running_sum)
