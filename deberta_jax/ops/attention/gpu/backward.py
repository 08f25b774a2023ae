"""The GPU's backward kernels: one for the queries, one for keys and values, one for the tables; no atomic additions.

With dS = P (dP - delta) scale, U = unshift(dS) and W = unshift(dS^T):
dq = dS k + U EK, dk = dS^T q + W EQ, dEK = U^T q, dEQ = W^T k. Each kernel computes dS again and adds up in a fixed
order what it keeps: a block of queries meets all keys, a block of keys all queries, and a window of the tables all
pairs of blocks at its distance, of all examples. Between far blocks a table's gradient is that of one row: the sums of
dS along each query, or key, are given back for it.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from deberta_jax.ops.attention.gpu import block_pair as tiles
from deberta_jax.ops.products import F32


def _weights_and_slopes(program: tiles.Program, number: Any, scores: Any, cotangent: Any, value: Any):
    """(weights after dropout, dS), [outer, inner]; ``cotangent`` and ``value`` are of the blocks of their sides."""
    across = (lambda x: x[:, None]) if program.query_outer else (lambda x: x[None, :])
    queries = program.outer if program.query_outer else number
    scores, seen = tiles.masked(program, scores, number)
    weights = jnp.exp(scores - across(program.numbers("logsum", queries)))
    if seen is not None:
        weights = jnp.where(seen, weights, 0.0)
    sides = (cotangent, value) if program.query_outer else (value, cotangent)
    d_weights, dropped = tiles.product(*sides, 1, 1), weights
    keep = tiles.kept(program, number)
    if keep is not None:
        share = 1.0 / (1.0 - program.plan.rate)
        dropped, d_weights = jnp.where(keep, weights * share, 0.0), jnp.where(keep, d_weights * share, 0.0)
    d_scores = weights * (d_weights - across(program.numbers("delta", queries))) * program.plan.scale
    return dropped, d_scores


def _through_table(program: tiles.Program, number: Any, d_scores: Any, after: Any, sums: Any, totals: Any):
    """Adds to the outer block's gradient what comes through its table, and to the totals of far blocks."""
    if program.outer_table not in program.refs:
        return sums, totals
    if after is None:
        half, _ = program.halves(number)
        tiles.put_d_scores(program, d_scores)
        slopes = tiles.by_distance(program, of_outer=True)
        return sums + tiles.product(slopes, program.window(program.outer_table, half, 2), 1, 0), totals
    total = d_scores.sum(axis=1)
    row = program.row(program.outer_table, tiles.far_rows(program, after=after)[0])
    totals = tuple(t + total if side == after else t for side, t in enumerate(totals))
    return sums + total[:, None] * row.astype(F32)[None, :], totals


def _zeros(program: tiles.Program) -> tuple[Any, tuple[Any, Any]]:
    size = program.plan.block
    none = jnp.zeros((size,), F32)
    return jnp.zeros((size, program.plan.lanes_per_head), F32), (none, none)


def _put_totals(program: tiles.Program, totals: tuple[Any, Any]) -> None:
    if "totals" in program.refs:
        for side, total in enumerate(totals):
            tokens = program.tokens(program.outer)
            program.refs["totals"][program.example, program.head, side, tokens] = total


def query_slopes(program: tiles.Program) -> None:
    """dq of one block of queries."""
    query, cotangent = (program.block(name, program.outer) for name in ("query", "cotangent"))

    def step(state, number, key, scores, after):
        sums, totals = state
        value = program.block("value", number)
        _, d_scores = _weights_and_slopes(program, number, scores, cotangent, value)
        rounded = d_scores.astype(key.dtype)
        sums += tiles.product(rounded, key, 1, 0)
        return _through_table(program, number, rounded if after is None else d_scores, after, sums, totals)

    sums, totals = tiles.each_inner(program, query, step, _zeros(program))
    program.put("d_query", program.outer, sums)
    _put_totals(program, totals)


def key_slopes(program: tiles.Program) -> None:
    """dk and dv of one block of keys."""
    key, value = (program.block(name, program.outer) for name in ("key", "value"))

    def step(state, number, query, scores, after):
        (sums, totals), d_value = state
        cotangent = program.block("cotangent", number)
        dropped, d_scores = _weights_and_slopes(program, number, scores, cotangent, value)
        rounded = d_scores.astype(query.dtype)
        d_value += tiles.product(dropped.astype(query.dtype), cotangent, 1, 0)
        sums += tiles.product(rounded, query, 1, 0)
        slopes = rounded if after is None else d_scores
        return _through_table(program, number, slopes, after, sums, totals), d_value

    zeros = _zeros(program)
    (sums, totals), d_value = tiles.each_inner(program, key, step, (zeros, zeros[0]))
    program.put("d_key", program.outer, sums)
    program.put("d_value", program.outer, d_value)
    _put_totals(program, totals)


def table_slopes(make_program: Any, examples: int, apart: Any, part: Any, parts: int) -> dict[str, Any]:
    """Gradients of the windows at one distance of blocks, [2S,H] float32 by table, over one part of the pairs.

    Args:
      make_program: (example, query block) -> the program's view.
      apart: key block - query block.
    """
    view = make_program(jnp.int32(0), jnp.int32(0))
    plan, refs = view.plan, view.refs
    across = plan.blocks - jnp.abs(apart)

    def add(sums, program, number):
        outer, inner = program.block("query", program.outer), program.block("key", number)
        tiles.put_outer_half(program, outer, program.halves(number)[0])
        scores = tiles.near_scores(program, outer, inner, number)
        others = program.block("cotangent", program.outer), program.block("value", number)
        _, d_scores = _weights_and_slopes(program, number, scores, *others)
        tiles.put_d_scores(program, d_scores.astype(outer.dtype))
        blocks = {"table_key": outer, "table_query": inner}
        slopes = lambda name: tiles.by_distance(program, of_outer=name == "table_key")
        return {name: total + tiles.product(slopes(name), blocks[name], 0, 0) for name, total in sums.items()}

    def visit(n, sums):
        pair = part + n * parts
        query_block = pair % across + jnp.maximum(-apart, 0)
        program = make_program(pair // across, query_block)
        number = query_block + apart
        if "ranges" not in refs:
            return add(sums, program, number)
        first, end = (refs["ranges"][program.example, query_block, side] for side in (0, 1))
        seen = (number >= first) & (number < end)
        return lax.cond(seen, lambda s: add(s, program, number), lambda s: s, sums)

    none = jnp.zeros((2 * plan.block, plan.lanes_per_head), F32)
    sums = {name: none for name in ("table_key", "table_query") if name in refs}
    return lax.fori_loop(0, pl.cdiv(across * examples - part, parts), visit, sums)
