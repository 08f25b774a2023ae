"""Computes disentangled attention in pieces that fit a CPU's cache: head by head, block of queries by block of queries.

Temporary memory is linear in the length: the scores of one block. Only the inputs, the context and the logsumexp are
kept for the backward pass, which ``block_math`` computes by explicit formulas. Two things make the position products
cheap. A tile of w rows meets its keys plus w distances of the table, not all 2T. And beyond some distance all keys on a
side read the same row (the end of the buckets, or v1's span): a far key has one term for all queries, so that a long
text pays for its near pairs only.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from deberta_jax.ops.attention.cpu.block_geometry import MEASURED_SIZES, BlockGeometry, BlockSizes, divide
from deberta_jax.ops.attention.cpu.block_math import (
    BlockGradients,
    KeySpan,
    PositionTables,
    QueryBlock,
    ScoreOptions,
    Softmax,
    TableWindows,
    block_context,
    block_gradients,
)
from deberta_jax.ops.attention.dropout import attention_random_bits
from deberta_jax.ops.attention.inputs import AttentionInputs
from deberta_jax.ops.attention.relative_position import index_by_distance
from deberta_jax.ops.dropout import dropout_seeds
from deberta_jax.ops.products import F32, product


def blocked_attention(inputs: AttentionInputs, *, sizes: BlockSizes = MEASURED_SIZES) -> Float[Array, "B T N H"]:
    """Returns the context in the dtype of ``value``.

    Args:
      inputs: arguments of the entry; talking heads are not supported.
      sizes: limits of the block sizes.
    """
    query, segment_ids = inputs.query, inputs.segment_ids
    batch, length, heads, size = query.shape
    geometry = divide(length, inputs.relative_index, sizes)
    if inputs.pos_key is None and inputs.pos_query is None:
        geometry = dataclasses.replace(geometry, near=geometry.length)
    padding = geometry.length - length
    # All near distances, from -(W-1) to W-1. A far one reads the row of the last on its side.
    index = np.pad(inputs.relative_index, padding, mode="edge")
    index = index[geometry.length - geometry.near :][: 2 * geometry.near - 1]
    if padding and segment_ids is None:
        segment_ids = jnp.ones((batch, length), jnp.int32)
    # In float32 the operands are scaled, which saves a pass over the scores; in bfloat16 that would cost accuracy.
    folded = inputs.scale if query.dtype == F32 else 1.0
    options = ScoreOptions(inputs.scale / folded, inputs.dropout_rate)
    at_once = max(1, sizes.scores // (geometry.block_size * geometry.length))
    examples = next(n for n in range(min(batch, at_once), 0, -1) if batch % n == 0)
    # ``block_math`` has no axis for a single example.
    steps = (batch // examples, examples) if examples > 1 else (batch,)

    def lay_out(x):
        """[B,T,N,H] -> [N, steps, examples if several, padded T, H]."""
        x = jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0)))
        return x.transpose(2, 0, 1, 3).reshape(heads, *steps, geometry.length, size)

    def heads_first(table):
        return None if table is None else table.transpose(1, 0, 2)

    def lay_out_mask(x):
        """[B,T] or [B,T,T] -> [steps, examples if several, ...], padded with False or segment 0."""
        if x is None:
            return None
        x = jnp.pad(x, ((0, 0), *((0, padding) for _ in x.shape[1:])))
        return x.reshape(*steps, *x.shape[1:])

    random_bits = None
    if inputs.dropout_key is not None and inputs.dropout_rate > 0:
        random_bits = attention_random_bits(dropout_seeds(inputs.dropout_key), batch, heads)
        random_bits = jnp.moveaxis(random_bits.reshape(2, *steps, heads), (-1, 1), (0, 1))
    context: jax.Array = _attend(
        (lay_out(query * folded if folded != 1.0 else query), lay_out(inputs.key), lay_out(inputs.value)),
        (heads_first(inputs.pos_key), heads_first(None if inputs.pos_query is None else inputs.pos_query * folded)),
        tuple(jnp.asarray(index_by_distance(index, descending=descending)) for descending in (True, False)),
        (lay_out_mask(segment_ids), lay_out_mask(inputs.attention_mask)),
        random_bits,
        options,
        geometry,
    )
    return context.reshape(heads, batch, geometry.length, size)[:, :, :length].transpose(1, 2, 0, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(operands, tables, indices, masks, random_bits, options: ScoreOptions, g: BlockGeometry):
    return _forward(operands, tables, indices, masks, random_bits, options, g)[0]


def _forward(operands, tables, indices, masks, random_bits, options: ScoreOptions, g: BlockGeometry):
    heads, steps = operands[0].shape[:2]

    def head(_, __, xs):
        operands, tables, random_bits = xs
        tables = rows_by_distance(tables, indices)

        def block(_, number, __):
            first = number * g.block_size
            windows = block_tables(tables, first, g)

            def step(_, __, xs):
                operands, masks, random_bits = xs
                queries, spans = block_inputs(operands, masks, random_bits, first, g)
                return None, block_context(queries, spans, windows, options)

            return None, loop(step, None, (operands, masks, random_bits), steps)[1]

        context, logsumexp = loop(block, None, None, g.blocks)[1]
        return None, (join_blocks(context, -2), join_blocks(logsumexp, -1))

    _, (context, logsumexp) = loop(head, None, (operands, tables, random_bits), heads)
    context = context.astype(operands[2].dtype)
    return context, (operands, tables, indices, masks, random_bits, context, logsumexp)


def _backward(options: ScoreOptions, g: BlockGeometry, saved, cotangent):
    operands, tables, indices, masks, random_bits, context, logsumexp = saved
    heads, steps = operands[0].shape[:2]
    # A product, not a sum over the last axis: XLA's CPU backend takes five times as long for a sum of so few numbers
    # (jax 0.10.2).
    letters = "NMBT" if context.ndim == 5 else "NMT"
    delta = product(f"{letters}H,{letters}H->{letters}", context.astype(F32), cotangent.astype(F32))

    def head(_, __, xs):
        operands, tables, random_bits, saved = xs
        tables = rows_by_distance(tables, indices)
        zeros = lambda x: jnp.zeros(x.shape, F32)

        def block(totals, number, _):
            first = number * g.block_size
            windows = block_tables(tables, first, g)

            def step(d_tables, _, xs):
                operands, masks, random_bits, saved = xs
                queries, spans = block_inputs(operands, masks, random_bits, first, g)
                saved = Softmax(*(take_block(x, first, g, axis) for x, axis in zip(saved, (-1, -1, -2), strict=True)))
                gradients = [block_gradients(queries, keys, windows, options, saved) for keys in spans]
                whole = lambda parts: join_keys(parts, g.first_near_key(first), g)
                d_keys = whole([x.d_key for x in gradients]), whole([x.d_value for x in gradients])
                d_tables = add_table_gradients(d_tables, gradients, first, g)
                return d_tables, (sum(x.d_query for x in gradients), *d_keys)

            d_tables, d_keys = totals
            d_tables, (d_query, *more) = loop(step, d_tables, (operands, masks, random_bits, saved), steps)
            return (d_tables, jax.tree.map(jnp.add, d_keys, tuple(more))), d_query

        totals = jax.tree.map(zeros, (tables, tuple(x.swapaxes(-1, -2) for x in operands[1:])))
        (d_tables, d_keys), d_query = loop(block, totals, None, g.blocks)
        return None, (join_blocks(d_query, -2), d_keys, d_tables)

    saved = (logsumexp, delta, cotangent)
    _, (d_query, d_keys, d_by_distance) = loop(head, None, (operands, tables, random_bits, saved), heads)
    # Transpose after the loop. Inside it XLA cancels this transpose and that of ``block_math``, and picks the slower
    # product that they avoid (jax 0.10.2).
    d_operands = (d_query, *(x.swapaxes(-1, -2) for x in d_keys))
    d_tables = tuple(
        None if table is None else jnp.zeros(table.shape, F32).at[:, index].add(gradient)
        for table, gradient, index in zip(tables, d_by_distance, indices, strict=True)
    )
    gradients = jax.tree.map(lambda d, x: d.astype(x.dtype), (d_operands, d_tables), (operands, tables))
    return *gradients, None, None, None


_attend.defvjp(_forward, _backward)


def loop(step, carry, xs, count: int):
    """Returns ``lax.scan`` of ``step(carry, index, x) -> (carry, y)``; a single step gets the index 0 as a constant."""
    if count == 1:
        carry, y = step(carry, 0, jax.tree.map(lambda x: x[0], xs))
        return carry, jax.tree.map(lambda y: y[None], y)
    return lax.scan(lambda carry, x: step(carry, x[0], x[1]), carry, (jnp.arange(count), xs))


def rows_by_distance(tables, indices):
    """Returns the rows of the tables [R,H] in the order of the distances [2W,H]."""
    return tuple(
        None if t is None else jnp.take(t, index, axis=0, mode="clip") for t, index in zip(tables, indices, strict=True)
    )


def window_starts(first_query, first_key, g: BlockGeometry):
    """Returns where the tiles' windows begin, in the table by descending distance (queries) and by ascending (keys)."""
    middle = g.near - g.tile
    return (
        [middle + first_key - first_query - i for i in range(0, g.block_size, g.tile)],
        [middle + first_query - first_key - i for i in range(0, g.near, g.tile)],
    )


def block_tables(tables, first_query, g: BlockGeometry) -> PositionTables:
    """Returns what the block at ``first_query`` reads of the tables by distance [2W,H]."""

    def one(table, starts, distances, past, future):
        if table is None:
            return None
        windows = jnp.stack([lax.dynamic_slice_in_dim(table, start, distances) for start in starts])
        return TableWindows(windows, table[past], table[future])

    last = 2 * g.near - 2
    of_queries, of_keys = window_starts(first_query, g.first_near_key(first_query), g)
    pos_key = one(tables[0], of_queries, g.near + g.tile, 0, last)
    return PositionTables(pos_key, one(tables[1], of_keys, g.block_size + g.tile, last, 0))


def add_table_gradients(totals, gradients: list[BlockGradients], first_query, g: BlockGeometry):
    """Returns the gradients of the tables by distance with a block's added: the transpose of ``block_tables``."""
    near, *far = gradients

    def one(total, windows, far_rows, starts, past, future):
        if total is None:
            return None
        for window, start in zip(windows, starts, strict=True):
            old = lax.dynamic_slice_in_dim(total, start, window.shape[-1])
            total = lax.dynamic_update_slice_in_dim(total, old + window.T, start, axis=0)
        for rows in far_rows:
            total = total.at[np.array([past, future])].add(rows)
        return total

    of_queries, of_keys = window_starts(first_query, g.first_near_key(first_query), g)
    last = 2 * g.near - 2
    return (
        one(totals[0], near.d_pos_key, [x.d_pos_key for x in far], of_queries, 0, last),
        one(totals[1], near.d_pos_query, [x.d_pos_query for x in far], of_keys, last, 0),
    )


def block_inputs(operands, masks, random_bits, first, g: BlockGeometry) -> tuple[QueryBlock, list[KeySpan]]:
    """Returns the queries of the block at ``first``, and the keys: near ones, then far ones if there are any."""
    (query, key, value), (segment_ids, attention_mask) = operands, masks
    block_segments, block_mask = (
        None if x is None else take_block(x, first, g, axis) for x, axis in ((segment_ids, -1), (attention_mask, -2))
    )
    queries = QueryBlock(take_block(query, first, g, -2), block_segments, first, random_bits)
    index = jnp.arange(g.length, dtype=jnp.uint32)
    future = index >= jnp.uint32(first)
    arrays = ((key, -2), (value, -2), (segment_ids, -1), (block_mask, -1), (index, 0), (future, 0))
    spans = zip(*(split_keys(x, g.first_near_key(first), g, axis) for x, axis in arrays), strict=True)
    return queries, [KeySpan(*span, far=far) for span, far in zip(spans, (False, True), strict=False)]


def take_block(x, first, g: BlockGeometry, axis: int):
    """Returns a block's part of an array over all queries."""
    return lax.dynamic_slice_in_dim(x, first, g.block_size, axis)


def join_blocks(x, axis: int):
    """Returns [blocks, ..., T, ...] as [..., blocks * T, ...]; ``axis`` is that of the queries, from the end."""
    return lax.collapse(jnp.moveaxis(x, 0, axis - 1), axis - 1, axis + 1 or None)


def split_keys(x, first_key, g: BlockGeometry, axis: int) -> list:
    """Returns the near window of an array over all keys, and the others, from the window's end on and around."""
    if g.all_near:
        return [x]
    return [x, x] if x is None else jnp.split(jnp.roll(x, -first_key, axis), [g.near], axis)


def join_keys(parts, first_key, g: BlockGeometry):
    """Returns the parts of ``split_keys`` joined along the last axis, its inverse."""
    return parts[0] if g.all_near else jnp.roll(jnp.concatenate(parts, -1), first_key, -1)
