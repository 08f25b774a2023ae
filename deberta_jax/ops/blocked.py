"""Disentangled attention in pieces that fit a cache: head by head, block of queries by block of queries.

Temporary memory is linear in the length: one block's scores. Only the inputs, the context and the softmax's
denominators are kept for the backward, which is written out in ``block``. Two things make the position products
cheap. A sub-block of w rows meets only its keys plus w distances of the table, not all 2T. And beyond some distance all
keys on a side read the same row (the end of the buckets, or v1's span), so for far keys the terms are a product per
token, and a long text pays for its near pairs alone.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.ops.block import Geometry, Keys, Queries, Rule, Tables, Terms, block_context, block_gradients
from deberta_jax.ops.dropout import dropout_seeds, pair_words
from deberta_jax.ops.products import F32
from deberta_jax.ops.shift import distance_rows

# Measured on a CPU. Larger products run faster than small ones until their results leave the cache.
_SCORES = 1 << 19  # most scores held at once: those of as many examples as are taken at a time
_BLOCK = 512  # most queries of a block
_ROWS = 128  # most rows of a sub-block: of fewer, less of a product is cut away, but small products run slowly


def blocked_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T N H"],
    value: Float[Array, "B T N H"],
    pos_key: Float[Array, "R N H"] | None,
    pos_query: Float[Array, "R N H"] | None,
    rows: Int[np.ndarray, " U"],
    *,
    scale: float,
    texts: Int[Array, "B T"] | None = None,
    pairs: Bool[Array, "B T T"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> Float[Array, "B T N H"]:
    """Context; arguments as in ``ops.attention.disentangled_attention``."""
    batch, length, heads, size = query.shape
    geometry = cut(length, rows)
    extra = geometry.length - length
    # All near distances, from -(W-1) to W-1. A far one reads the row of the last on its side.
    rows = np.pad(rows, extra, mode="edge")[geometry.length - geometry.near :][: 2 * geometry.near - 1]
    if extra and texts is None:
        texts = jnp.ones((batch, length), jnp.int32)
    # In float32 the scale goes into operands, which saves a pass over the scores; in bfloat16 that would cost accuracy.
    folded = scale if query.dtype == F32 else 1.0
    rule = Rule(geometry, scale / folded, dropout_rate)
    at_once = max(1, _SCORES // (geometry.block * geometry.length))
    examples = next(n for n in range(min(batch, at_once), 0, -1) if batch % n == 0)

    def lay_out(x):
        """[B,T,N,H] -> [N, steps, examples, padded T, H]."""
        x = jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0)))
        return x.transpose(2, 0, 1, 3).reshape(heads, -1, examples, geometry.length, size)

    def by_head(table):
        return None if table is None else table.transpose(1, 0, 2)

    def lay_out_mask(x):
        """[B,T] or [B,T,T] -> [steps, examples, ...], padded with what may not be read."""
        if x is None:
            return None
        x = jnp.pad(x, ((0, 0), *((0, extra) for _ in x.shape[1:])))
        return x.reshape(-1, examples, *x.shape[1:])

    words = None
    if dropout_key is not None and dropout_rate > 0:
        words = pair_words(dropout_seeds(dropout_key), batch, heads)
        words = words.reshape(2, batch // examples, examples, heads).transpose(3, 1, 0, 2)
    context: jax.Array = _attend(
        (lay_out(query * folded if folded != 1.0 else query), lay_out(key), lay_out(value)),
        (by_head(pos_key), by_head(None if pos_query is None else pos_query * folded)),
        (jnp.asarray(distance_rows(rows, descending=True)), jnp.asarray(distance_rows(rows, descending=False))),
        (lay_out_mask(texts), lay_out_mask(pairs)),
        words,
        rule,
    )  # fmt: skip
    return context.reshape(heads, batch, geometry.length, size)[:, :, :length].transpose(1, 2, 0, 3)


def cut(length: int, rows: Int[np.ndarray, " U"]) -> Geometry:
    """Equal blocks of equal sub-blocks, with as few tokens of padding as there are sub-blocks, and the near window."""
    blocks = math.ceil(length / _BLOCK)
    count = blocks * math.ceil(length / (blocks * _ROWS))
    size = math.ceil(length / count)
    block = count * size // blocks
    side = size * math.ceil(reach(rows) / size)
    return Geometry(count * size, block, min(count * size, block + 2 * side), size)


def reach(rows: Int[np.ndarray, " U"]) -> int:
    """The smallest distance from which on, either way, all distances read one row."""
    length = (len(rows) + 1) // 2
    runs = (np.argmax(np.append(side != side[0], True)) for side in (rows, rows[::-1]))
    return length - int(min(length, *runs))


def loop(step, carry, xs, count: int):
    """``step(carry, index, x) -> (carry, y)`` over the leading axis; once, with a plain index 0, where it is 1 long."""
    if count == 1:
        carry, y = step(carry, 0, jax.tree.map(lambda x: x[0], xs))
        return carry, jax.tree.map(lambda y: y[None], y)
    return lax.scan(lambda carry, x: step(carry, x[0], x[1]), carry, (jnp.arange(count), xs))


def window_starts(first_query, first_key, g: Geometry):
    """Where the windows begin in the table by descending distance (for queries), and by ascending (for keys)."""
    middle = g.near - g.rows
    return (
        [middle + first_key - first_query - i for i in range(0, g.block, g.rows)],
        [middle + first_query - first_key - i for i in range(0, g.near, g.rows)],
    )


def block_terms(tables, first_query, g: Geometry) -> Terms:
    """What the block at ``first_query`` reads of the tables by distance [2W,H]."""

    def one(table, starts, width, past, future):
        if table is None:
            return None
        windows = jnp.stack([lax.dynamic_slice_in_dim(table, start, width) for start in starts])
        return Tables(windows, table[past], table[future])

    first_key, last = g.first_key(first_query), 2 * g.near - 2
    for_queries, for_keys = window_starts(first_query, first_key, g)
    by_key = one(tables[0], for_queries, g.near + g.rows, 0, last)
    return Terms(by_key, one(tables[1], for_keys, g.block + g.rows, last, 0), first_key)


def add_to_tables(totals, gradients, first_query, g: Geometry):
    """The transpose of ``block_terms``: adds a block's gradients to those of the tables by distance."""

    def one(total, gradient, starts, past, future):
        if total is None:
            return None
        windows, far = gradient
        for window, start in zip(windows, starts, strict=True):
            old = lax.dynamic_slice_in_dim(total, start, window.shape[-1])
            total = lax.dynamic_update_slice_in_dim(total, old + window.T, start, axis=0)
        return total if far is None else total.at[np.array([past, future])].add(far)

    for_queries, for_keys = window_starts(first_query, g.first_key(first_query), g)
    last = 2 * g.near - 2
    return one(totals[0], gradients[0], for_queries, 0, last), one(totals[1], gradients[1], for_keys, last, 0)


def of_distances(tables, rows):
    """Tables [R,H] -> their rows in the order of the distances [2W,H]."""
    return tuple(
        None if t is None else jnp.take(t, index, axis=0, mode="clip") for t, index in zip(tables, rows, strict=True)
    )


def of_block(x, first, g: Geometry):
    """A block's share [b,T,...] of an array [b,S,...] over queries."""
    return lax.dynamic_slice_in_dim(x, first, g.block, axis=1)


def joined(x):
    """[blocks, steps, b, T, ...] -> [steps, b, S, ...]."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])


def block_inputs(operands, masks, words, first, g: Geometry) -> tuple[Queries, Keys]:
    (query, key, value), (texts, pairs) = operands, masks
    of_queries = lambda x: None if x is None else of_block(x, first, g)
    queries = Queries(of_block(query, first, g), of_queries(texts), of_queries(pairs), first, words)
    return queries, Keys(key, value, texts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(operands, tables, rows, masks, words, rule: Rule):
    return _forward(operands, tables, rows, masks, words, rule)[0]


def _forward(operands, tables, rows, masks, words, rule: Rule):
    g, (heads, steps) = rule.geometry, operands[0].shape[:2]

    def head(_, __, xs):
        operands, tables, words = xs
        tables = of_distances(tables, rows)

        def block(_, index, __):
            first = index * g.block
            terms = block_terms(tables, first, g)

            def step(_, __, xs):
                operands, masks, words = xs
                queries, keys = block_inputs(operands, masks, words, first, g)
                return None, block_context(queries, keys, terms, rule)

            return None, loop(step, None, (operands, masks, words), steps)[1]

        return None, jax.tree.map(joined, loop(block, None, None, g.blocks)[1])

    _, (context, log_total) = loop(head, None, (operands, tables, words), heads)
    context = context.astype(operands[2].dtype)
    return context, (operands, tables, rows, masks, words, context, log_total)


def _backward(rule: Rule, saved, cotangent):
    operands, tables, rows, masks, words, context, log_total = saved
    g, (heads, steps) = rule.geometry, operands[0].shape[:2]
    delta = (context.astype(F32) * cotangent.astype(F32)).sum(-1)

    def head(_, __, xs):
        operands, tables, words, saved = xs
        tables = of_distances(tables, rows)
        zeros = lambda x: jnp.zeros(x.shape, F32)

        def block(totals, index, _):
            first = index * g.block
            terms = block_terms(tables, first, g)

            def step(to_tables, _, xs):
                operands, masks, words, saved = xs
                queries, keys = block_inputs(operands, masks, words, first, g)
                saved = tuple(of_block(x, first, g) for x in saved)
                found = block_gradients(queries, keys, terms, rule, saved)
                to_tables = add_to_tables(to_tables, (found.by_key, found.by_query), first, g)
                return to_tables, (found.query, found.key, found.value)

            to_tables, to_keys = totals
            to_tables, (to_query, *more) = loop(step, to_tables, (operands, masks, words, saved), steps)
            return (to_tables, jax.tree.map(jnp.add, to_keys, tuple(more))), to_query

        totals = jax.tree.map(zeros, (tables, (operands[1], operands[2])))
        (to_tables, (to_key, to_value)), to_query = loop(block, totals, None, g.blocks)
        return None, ((joined(to_query), to_key, to_value), to_tables)

    saved = (log_total, delta, cotangent)
    _, (to_operands, by_distance) = loop(head, None, (operands, tables, words, saved), heads)
    to_tables = tuple(
        None if table is None else jnp.zeros(table.shape, F32).at[:, index].add(gradient)
        for table, gradient, index in zip(tables, by_distance, rows, strict=True)
    )
    gradients = jax.tree.map(lambda g, x: g.astype(x.dtype), (to_operands, to_tables), (operands, tables))
    return *gradients, None, None, None


_attend.defvjp(_forward, _backward)
