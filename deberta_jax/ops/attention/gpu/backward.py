"""Implements the GPU's backward kernels: one for queries, one for keys and values, one for the tables.

With dS = P (dP - delta) scale, U = rel_unshift(dS) and W = rel_unshift(dS^T):

    d_query = dS k + U table_key        d_table_key = U^T q
    d_key = dS^T q + W table_query      d_table_query = W^T k

There are no atomic additions. Each kernel computes dS again and sums, in a fixed order, what it keeps: a block of
queries meets all keys, a block of keys all queries, and a window of the tables all pairs of blocks at its offset, of
all examples. Between far blocks a table's gradient is that of one row: the kernels for queries and keys also return the
sums of dS along each query, or key, for it.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from deberta_jax.ops.attention.gpu import block_pair
from deberta_jax.ops.attention.gpu.block_pair import KernelProgram
from deberta_jax.ops.attention.pallas.layout import contract
from deberta_jax.ops.products import F32


def query_gradients(program: KernelProgram) -> None:
    """Stores d_query of one block of queries."""
    query, cotangent = (program.load_block(name, program.outer) for name in ("query", "cotangent"))

    def step(state, number, key, scores, after):
        accumulator, far_sums = state
        value = program.load_block("value", number)
        _, d_scores = _weights_and_d_scores(program, number, scores, cotangent, value)
        rounded = d_scores.astype(key.dtype)
        accumulator += contract(rounded, key, 1, 0)
        d_scores = rounded if after is None else d_scores
        return _add_through_table(program, number, d_scores, after, accumulator, far_sums)

    accumulator, far_sums = block_pair.for_each_inner(program, query, step, _zeros(program))
    program.store_block("d_query", program.outer, accumulator)
    _store_far_sums(program, far_sums)


def key_value_gradients(program: KernelProgram) -> None:
    """Stores d_key and d_value of one block of keys."""
    key, value = (program.load_block(name, program.outer) for name in ("key", "value"))

    def step(state, number, query, scores, after):
        (accumulator, far_sums), d_value = state
        cotangent = program.load_block("cotangent", number)
        dropped, d_scores = _weights_and_d_scores(program, number, scores, cotangent, value)
        rounded = d_scores.astype(query.dtype)
        d_value += contract(dropped.astype(query.dtype), cotangent, 1, 0)
        accumulator += contract(rounded, query, 1, 0)
        d_scores = rounded if after is None else d_scores
        return _add_through_table(program, number, d_scores, after, accumulator, far_sums), d_value

    zeros = _zeros(program)
    (accumulator, far_sums), d_value = block_pair.for_each_inner(program, key, step, (zeros, zeros[0]))
    program.store_block("d_key", program.outer, accumulator)
    program.store_block("d_value", program.outer, d_value)
    _store_far_sums(program, far_sums)


def table_gradients(make_program: Any, examples: int, offset: Any, part: Any, parts: int) -> dict[str, Any]:
    """Returns the gradients of the windows at one block offset, [2S,H] float32 by table, over one part of the pairs.

    Args:
      make_program: (example, query block) -> KernelProgram.
      examples: number of examples.
      offset: key block - query block.
      part, parts: number of this part of the pairs, and of all parts.
    """
    first_program = make_program(jnp.int32(0), jnp.int32(0))
    tiling, refs = first_program.tiling, first_program.refs
    pairs = tiling.blocks - jnp.abs(offset)

    def add(sums, program, number):
        outer, inner = program.load_block("query", program.outer), program.load_block("key", number)
        block_pair.store_outer_half(program, outer, program.first_halves(number)[0])
        scores = block_pair.near_scores(program, outer, inner, number)
        others = program.load_block("cotangent", program.outer), program.load_block("value", number)
        _, d_scores = _weights_and_d_scores(program, number, scores, *others)
        block_pair.store_d_scores(program, d_scores.astype(outer.dtype))
        blocks = {"table_key": outer, "table_query": inner}
        by_distance = lambda name: block_pair.rel_unshift(program, of_outer=name == "table_key")
        return {name: total + contract(by_distance(name), blocks[name], 0, 0) for name, total in sums.items()}

    def visit(n, sums):
        pair = part + n * parts
        query_block = pair % pairs + jnp.maximum(-offset, 0)
        program = make_program(pair // pairs, query_block)
        number = query_block + offset
        if "ranges" not in refs:
            return add(sums, program, number)
        first, end = (refs["ranges"][program.example, query_block, side] for side in (0, 1))
        has_work = (number >= first) & (number < end)
        return lax.cond(has_work, lambda s: add(s, program, number), lambda s: s, sums)

    zeros = jnp.zeros((2 * tiling.block_size, tiling.lanes_per_head), F32)
    sums = {name: zeros for name in ("table_key", "table_query") if name in refs}
    return lax.fori_loop(0, pl.cdiv(pairs * examples - part, parts), visit, sums)


def _weights_and_d_scores(
    program: KernelProgram, number: Any, scores: Any, cotangent: Any, value: Any
) -> tuple[Any, Any]:
    """Returns the weights after dropout and dS, [outer, inner].

    Args:
      cotangent, value: blocks of the query side and of the key side.
    """
    broadcast = (lambda x: x[:, None]) if program.query_outer else (lambda x: x[None, :])
    queries = program.outer if program.query_outer else number
    scores, mask = block_pair.mask_scores(program, scores, number)
    weights = jnp.exp(scores - broadcast(program.load_numbers("logsumexp", queries)))
    if mask is not None:
        weights = jnp.where(mask, weights, 0.0)
    sides = (cotangent, value) if program.query_outer else (value, cotangent)
    d_weights, dropped = contract(*sides, 1, 1), weights
    keep = block_pair.kept_weights(program, number)
    if keep is not None:
        factor = 1.0 / (1.0 - program.tiling.dropout_rate)
        dropped, d_weights = jnp.where(keep, weights * factor, 0.0), jnp.where(keep, d_weights * factor, 0.0)
    d_scores = weights * (d_weights - broadcast(program.load_numbers("delta", queries))) * program.tiling.scale
    return dropped, d_scores


def _add_through_table(
    program: KernelProgram, number: Any, d_scores: Any, after: Any, accumulator: Any, far_sums: tuple[Any, Any]
) -> tuple[Any, tuple[Any, Any]]:
    """Returns the outer block's gradient with the part through its table, and the sums of dS of far blocks."""
    if program.outer_table not in program.refs:
        return accumulator, far_sums
    if after is None:
        half, _ = program.first_halves(number)
        block_pair.store_d_scores(program, d_scores)
        by_distance = block_pair.rel_unshift(program, of_outer=True)
        return accumulator + contract(by_distance, program.load_window(program.outer_table, half, 2), 1, 0), far_sums
    d_sum = d_scores.sum(axis=1)
    row = program.load_row(program.outer_table, block_pair.far_rows(program, after=after)[0])
    far_sums = tuple(total + d_sum if side == after else total for side, total in enumerate(far_sums))
    return accumulator + d_sum[:, None] * row.astype(F32)[None, :], far_sums


def _zeros(program: KernelProgram) -> tuple[Any, tuple[Any, Any]]:
    size = program.tiling.block_size
    zeros = jnp.zeros((size,), F32)
    return jnp.zeros((size, program.tiling.lanes_per_head), F32), (zeros, zeros)


def _store_far_sums(program: KernelProgram, far_sums: tuple[Any, Any]) -> None:
    if "far_sums" in program.refs:
        for side, total in enumerate(far_sums):
            tokens = program.tokens(program.outer)
            program.refs["far_sums"][program.example, program.head, side, tokens] = total
