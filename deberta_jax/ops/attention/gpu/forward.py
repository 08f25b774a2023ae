"""Implements the GPU's forward kernel: one pass over the keys by online softmax (Milakov and Gimelshein 2018)."""

import jax.numpy as jnp

from deberta_jax.ops.attention.gpu import block_pair
from deberta_jax.ops.attention.gpu.block_pair import LOG2E, KernelProgram
from deberta_jax.ops.attention.masks import MASKED_SCORE
from deberta_jax.ops.products import F32


def attend(program: KernelProgram) -> None:
    """Stores the context and the logsumexp of one block of queries."""
    group, tiling, refs = program.group, program.tiling, program.refs
    (query,) = block_pair.load_outer(program, "query")

    def step(state, inner, scores):
        before, running_sum, accumulator = state
        scores = scores(query)
        inner.release()
        scores, mask = block_pair.mask_scores(program, scores, inner.number)
        running_max = jnp.maximum(before, scores.max(axis=1))
        weights = jnp.exp2(scores - group.spread_rows(running_max))
        if mask is not None:  # where all keys so far were masked, a masked score equals the maximum
            weights = jnp.where(mask, weights, 0.0)
        rescale = jnp.exp2(before - running_max)
        running_sum = running_sum * rescale + weights.sum(axis=1)
        keep = block_pair.kept_weights(program, inner.number)
        if keep is not None:
            weights = jnp.where(keep, weights, 0.0)
        accumulator = tuple(x * group.spread_rows(rescale, group.chunk) for x in accumulator)
        left = group.left_of(refs.get("tile_buffer"), weights)
        return running_max, running_sum, group.add_times(accumulator, left, inner.value)

    start = group.full_rows(MASKED_SCORE), group.full_rows(0.0), group.zeros()
    running_max, running_sum, accumulator = block_pair.for_each_inner(program, step, start)
    running_sum = jnp.where(running_sum == 0.0, 1.0, running_sum)
    divisor = group.spread_rows(running_sum * (1.0 - tiling.dropout_rate), group.chunk)
    for number, total in enumerate(accumulator):
        context = total / divisor
        store = lambda name, x, number=number: group.store(program.block(name, program.outer)[number], x)
        store("context", context)
        if program.has("context_rest"):
            store("context_rest", context - context.astype(refs["context"].dtype).astype(F32))
    group.store(program.numbers("logsumexp", program.outer), (running_max + jnp.log2(running_sum)) * (1.0 / LOG2E))
