"""Implements the GPU's backward kernels: one for queries and the key table, one for keys, values and the query table.

With dS = P (dP - delta) scale, U = rel_unshift(dS) and W = rel_unshift(dS^T):

    d_query = dS k + U table_key        d_table_key = U^T q
    d_key = dS^T q + W table_query      d_table_query = W^T k

There are no atomic additions. A program visits outer blocks of one head, one after the other, and adds what its table
owes them to an array that is its own; these are summed over the programs afterwards. All sums therefore have a fixed
order, and the arrays' size depends on the number of programs alone, not on that of tokens. Between far blocks a table's
gradient is that of one row: the kernels also return the sums of dS along each outer token for it.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from deberta_jax.ops.attention.gpu import block_pair
from deberta_jax.ops.attention.gpu.block_pair import LOG2E, KernelProgram
from deberta_jax.ops.attention.gpu.warpgroup import Chunks
from deberta_jax.ops.products import F32


def clear_table_gradient(program: KernelProgram, halves: int) -> None:
    """Stores zeros in the program's own part of the gradient of its table."""
    if program.has("d_table"):

        def clear(half, nothing):
            for ref, zeros in zip(_table_sums(program, half), program.group.zeros(), strict=True):
                program.group.store(ref, zeros)
            return nothing

        lax.fori_loop(0, halves, clear, jnp.int32(0))


def _table_sums(program: KernelProgram, half: Any) -> list[Any]:
    size, group = program.tiling.block_size, program.group
    ref, chunk, rows = program.refs["d_table"], group.chunk, pl.ds(half * size, size)
    return [ref.at[program.part, program.head, rows, pl.ds(n * chunk, chunk)] for n in range(group.chunks)]


def gradients(program: KernelProgram) -> None:
    """Stores d_query of one block of queries, or d_key and d_value of one block of keys, and adds to the table's."""
    group, refs = program.group, program.refs
    names = ("query", "cotangent") if program.query_outer else ("key", "value")
    outer, other = block_pair.load_outer(program, *names)
    own = None
    if program.query_outer:  # one number for each query, the same for all keys
        own = tuple(group.spread_rows(group.rows(program.numbers(name, program.outer))) for name in _PER_QUERY)

    def step(state, inner, scores):
        gradient, d_value, far_sums = state
        number, tile = inner.number, refs.get("tile_buffer")
        scores, mask = block_pair.mask_scores(program, scores(outer), number)
        logsumexp, delta = own or (group.spread_columns(program.numbers(name, number)) for name in _PER_QUERY)
        weights = jnp.exp2(scores - logsumexp * LOG2E)
        if mask is not None:
            weights = jnp.where(mask, weights, 0.0)
        d_weights, keep = group.times(other, inner.value), block_pair.kept_weights(program, number)
        if keep is not None:
            d_weights = jnp.where(keep, d_weights * _inverse(program), 0.0)
        d_scores = weights * (d_weights - delta) * program.tiling.scale
        if not program.query_outer:
            dropped = weights if keep is None else jnp.where(keep, weights * _inverse(program), 0.0)
            d_value = group.add_times(d_value, group.left_of(tile, dropped), inner.value)
        gradient = group.add_times(gradient, group.left_of(tile, d_scores), inner.content)
        if program.has(program.outer_table):
            if inner.after is None:
                gradient = _add_through_table(program, number, d_scores, gradient)
            else:
                total = d_scores.sum(axis=1)
                far_sums = tuple(x + jnp.where(inner.after == side, total, 0.0) for side, x in enumerate(far_sums))
        inner.release()
        return gradient, d_value, far_sums

    zeros = group.full_rows(0.0)
    start = (
        group.zeros(),
        () if program.query_outer else group.zeros(),
        (zeros, zeros) if program.has("far_sums") else (),
    )
    gradient, d_value, far_sums = block_pair.for_each_inner(program, step, start)
    for side, total in enumerate(far_sums):
        group.store(program.far_numbers("far_sums", program.outer, side), total)
        for number, lanes in enumerate(program.lanes()):
            row = group.spread_columns(refs["far_rows"].at[side, lanes], (group.size, group.chunk))
            added = gradient[number] + group.spread_rows(total, group.chunk) * row
            gradient = (*gradient[:number], added, *gradient[number + 1 :])
    for name, chunks in ((f"d_{names[0]}", gradient), ("d_value", d_value)):
        for number, x in enumerate(chunks):
            group.store(program.block(name, program.outer)[number], x)


_PER_QUERY = ("logsumexp", "delta")


def _inverse(program: KernelProgram) -> float:
    return 1.0 / (1.0 - program.tiling.dropout_rate)


def _add_through_table(program: KernelProgram, number: Any, d_scores: Any, gradient: Chunks) -> Chunks:
    """Returns the outer block's gradient with the part through its table, and adds to that table's gradient."""
    group, refs = program.group, program.refs
    products, tile = refs["products_buffer"], refs.get("tile_buffer")
    first, _ = program.first_halves(number)
    rounded = d_scores.astype(group.dtype).astype(F32)
    group.put_scores(products, rounded)
    for half in range(2):
        left = group.left_half(products, half, tile)
        gradient = group.add_times(gradient, left, block_pair.half_window(program, program.outer_table, first, half))
    right = block_pair.outer_right(program, "query" if program.query_outer else "key")
    for half in range(2):
        left = group.left_half(products, half, tile, transposed=True)
        group.add_in_memory(_table_sums(program, first + half), left, right)
    return gradient
