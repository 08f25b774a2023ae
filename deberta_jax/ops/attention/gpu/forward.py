"""The GPU's forward kernel: one pass over the keys with a running maximum and sum (Milakov and Gimelshein 2018)."""

from typing import Any

import jax.numpy as jnp

from deberta_jax.ops.attention.gpu import block_pair as tiles
from deberta_jax.ops.products import F32


def attend(program: tiles.Program) -> None:
    """Context and logsum of one block of queries."""
    plan = program.plan
    query = program.block("query", program.outer)

    def step(state, number, _, scores, __):
        before, total, sums = state
        scores, seen = tiles.masked(program, scores, number)
        top = jnp.maximum(before, scores.max(axis=1))
        weights = jnp.exp(scores - top[:, None])
        if seen is not None:  # where nothing was visible so far, a masked score equals the maximum
            weights = jnp.where(seen, weights, 0.0)
        shrink = jnp.exp(before - top)
        total = total * shrink + weights.sum(axis=1)
        keep = tiles.kept(program, number)
        if keep is not None:
            weights = jnp.where(keep, weights, 0.0)
        value = program.block("value", number)
        sums = sums * shrink[:, None] + tiles.product(weights.astype(value.dtype), value, 1, 0)
        return top, total, sums

    start: Any = (
        jnp.full((plan.block,), tiles.MASKED, F32),
        jnp.zeros((plan.block,), F32),
        jnp.zeros((plan.block, plan.lanes_per_head), F32),
    )
    top, total, sums = tiles.each_inner(program, query, step, start)
    total = jnp.where(total == 0.0, 1.0, total)
    program.put("context", program.outer, sums / (total * (1.0 - plan.rate))[:, None])
    tokens = program.tokens(program.outer)
    program.refs["logsum"][program.example, program.head, tokens] = top + jnp.log(total)
