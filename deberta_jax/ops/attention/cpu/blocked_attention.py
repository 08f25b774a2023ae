"""Disentangled attention in pieces that fit a cache: head by head, block of queries by block of queries.

Temporary memory is linear in the length: one block's scores. Only the inputs, the context and the softmax's
denominators are kept for the backward, which is written out in ``block``. Two things make the position products
cheap. A sub-block of w rows meets only its keys plus w distances of the table, not all 2T. And beyond some distance all
keys on a side read the same row (the end of the buckets, or v1's span), so a far key has its terms once for all
queries, and a long text pays for its near pairs alone.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.ops.attention.cpu.block_math import (
    Gradients,
    Keys,
    Queries,
    Rule,
    Tables,
    Terms,
    block_context,
    block_gradients,
)
from deberta_jax.ops.attention.xla import distance_rows
from deberta_jax.ops.dropout import dropout_seeds, pair_words
from deberta_jax.ops.products import F32, product

# Measured on a CPU. Larger products run faster than small ones until their results leave the cache.
_SCORES = 1 << 19  # scores of the examples taken at a time, and of a block as long as it keeps ``_LEAST`` queries
_LEAST, _BLOCK = 256, 512  # most queries of a block: the first of a long text, the second of a short one
_ROWS = 128  # most rows of a sub-block: of fewer, less of a product is cut away, but small products run slowly


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How a text is cut, in tokens; all static.

    length: of the padded text, ``blocks * block``.
    block: queries of a block, whose scores [block, length] are held at once.
    near: keys in the window around a block. Keys outside lie so far off that all distances on a side read one row.
    rows: rows of a sub-block, whose position product is ``rows`` wider than its keys.
    """

    length: int
    block: int
    near: int
    rows: int

    @property
    def blocks(self) -> int:
        return self.length // self.block

    @property
    def all_near(self) -> bool:
        return self.near == self.length

    def first_key(self, first_query):
        """Where the near window of the block at ``first_query`` begins."""
        if self.all_near:
            return 0
        return jnp.clip(first_query - (self.near - self.block) // 2, 0, self.length - self.near)


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
    if pos_key is None and pos_query is None:
        geometry = dataclasses.replace(geometry, near=geometry.length)
    extra = geometry.length - length
    # All near distances, from -(W-1) to W-1. A far one reads the row of the last on its side.
    rows = np.pad(rows, extra, mode="edge")[geometry.length - geometry.near :][: 2 * geometry.near - 1]
    if extra and texts is None:
        texts = jnp.ones((batch, length), jnp.int32)
    # In float32 the scale goes into operands, which saves a pass over the scores; in bfloat16 that would cost accuracy.
    folded = scale if query.dtype == F32 else 1.0
    rule = Rule(scale / folded, dropout_rate)
    at_once = max(1, _SCORES // (geometry.block * geometry.length))
    examples = next(n for n in range(min(batch, at_once), 0, -1) if batch % n == 0)
    steps = (batch // examples, examples) if examples > 1 else (batch,)  # ``block`` has no axis for a single example

    def lay_out(x):
        """[B,T,N,H] -> [N, steps, examples if several, padded T, H]."""
        x = jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0)))
        return x.transpose(2, 0, 1, 3).reshape(heads, *steps, geometry.length, size)

    def by_head(table):
        return None if table is None else table.transpose(1, 0, 2)

    def lay_out_mask(x):
        """[B,T] or [B,T,T] -> [steps, examples if several, ...], padded with what may not be read."""
        if x is None:
            return None
        x = jnp.pad(x, ((0, 0), *((0, extra) for _ in x.shape[1:])))
        return x.reshape(*steps, *x.shape[1:])

    words = None
    if dropout_key is not None and dropout_rate > 0:
        words = pair_words(dropout_seeds(dropout_key), batch, heads)
        words = jnp.moveaxis(words.reshape(2, *steps, heads), (-1, 1), (0, 1))
    context: jax.Array = _attend(
        (lay_out(query * folded if folded != 1.0 else query), lay_out(key), lay_out(value)),
        (by_head(pos_key), by_head(None if pos_query is None else pos_query * folded)),
        (jnp.asarray(distance_rows(rows, descending=True)), jnp.asarray(distance_rows(rows, descending=False))),
        (lay_out_mask(texts), lay_out_mask(pairs)),
        words,
        rule,
        geometry,
    )
    return context.reshape(heads, batch, geometry.length, size)[:, :, :length].transpose(1, 2, 0, 3)


def cut(length: int, rows: Int[np.ndarray, " U"]) -> Geometry:
    """Equal blocks of equal sub-blocks, with as few tokens of padding as there are sub-blocks, and the near window."""
    blocks = math.ceil(length / min(_BLOCK, max(_LEAST, _SCORES // length)))
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

    last = 2 * g.near - 2
    for_queries, for_keys = window_starts(first_query, g.first_key(first_query), g)
    by_key = one(tables[0], for_queries, g.near + g.rows, 0, last)
    return Terms(by_key, one(tables[1], for_keys, g.block + g.rows, last, 0))


def add_to_tables(totals, gradients: list[Gradients], first_query, g: Geometry):
    """The transpose of ``block_terms``: adds a block's gradients to those of the tables by distance."""
    near, *far = gradients

    def one(total, windows, far_rows, starts, past, future):
        if total is None:
            return None
        for window, start in zip(windows, starts, strict=True):
            old = lax.dynamic_slice_in_dim(total, start, window.shape[-1])
            total = lax.dynamic_update_slice_in_dim(total, old + window.T, start, axis=0)
        for found in far_rows:
            total = total.at[np.array([past, future])].add(found)
        return total

    for_queries, for_keys = window_starts(first_query, g.first_key(first_query), g)
    last = 2 * g.near - 2
    return (
        one(totals[0], near.by_key, [x.by_key for x in far], for_queries, 0, last),
        one(totals[1], near.by_query, [x.by_query for x in far], for_keys, last, 0),
    )


def of_distances(tables, rows):
    """Tables [R,H] -> their rows in the order of the distances [2W,H]."""
    return tuple(
        None if t is None else jnp.take(t, index, axis=0, mode="clip") for t, index in zip(tables, rows, strict=True)
    )


def of_block(x, first, g: Geometry, axis: int):
    """A block's share of an array over all queries."""
    return lax.dynamic_slice_in_dim(x, first, g.block, axis)


def joined(x, axis: int):
    """[blocks, ..., T, ...] -> [..., blocks * T, ...]; ``axis`` is the queries', counted from the end."""
    return lax.collapse(jnp.moveaxis(x, 0, axis - 1), axis - 1, axis + 1 or None)


def split(x, first_key, g: Geometry, axis: int) -> list:
    """An array over all keys -> its near window, and the others: from the window's end on, and then from the start."""
    if g.all_near:
        return [x]
    return [x, x] if x is None else jnp.split(jnp.roll(x, -first_key, axis), [g.near], axis)


def unsplit(parts, first_key, g: Geometry):
    """The transpose of ``split`` along the last axis."""
    return parts[0] if g.all_near else jnp.roll(jnp.concatenate(parts, -1), first_key, -1)


def block_inputs(operands, masks, words, first, g: Geometry) -> tuple[Queries, list[Keys]]:
    """A block of queries, and the keys: the near ones, then the far ones if there are any."""
    (query, key, value), (texts, pairs) = operands, masks
    of_texts, of_pairs = (None if x is None else of_block(x, first, g, a) for x, a in ((texts, -1), (pairs, -2)))
    queries = Queries(of_block(query, first, g, -2), of_texts, first, words)
    index = jnp.arange(g.length, dtype=jnp.uint32)
    of_keys = ((key, -2), (value, -2), (texts, -1), (of_pairs, -1), (index, 0), (index >= jnp.uint32(first), 0))
    spans = zip(*(split(x, g.first_key(first), g, axis) for x, axis in of_keys), strict=True)
    return queries, [Keys(*span, far=far) for span, far in zip(spans, (False, True), strict=False)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(operands, tables, rows, masks, words, rule: Rule, g: Geometry):
    return _forward(operands, tables, rows, masks, words, rule, g)[0]


def _forward(operands, tables, rows, masks, words, rule: Rule, g: Geometry):
    heads, steps = operands[0].shape[:2]

    def head(_, __, xs):
        operands, tables, words = xs
        tables = of_distances(tables, rows)

        def block(_, index, __):
            first = index * g.block
            terms = block_terms(tables, first, g)

            def step(_, __, xs):
                operands, masks, words = xs
                queries, spans = block_inputs(operands, masks, words, first, g)
                return None, block_context(queries, spans, terms, rule)

            return None, loop(step, None, (operands, masks, words), steps)[1]

        context, log_total = loop(block, None, None, g.blocks)[1]
        return None, (joined(context, -2), joined(log_total, -1))

    _, (context, log_total) = loop(head, None, (operands, tables, words), heads)
    context = context.astype(operands[2].dtype)
    return context, (operands, tables, rows, masks, words, context, log_total)


def _backward(rule: Rule, g: Geometry, saved, cotangent):
    operands, tables, rows, masks, words, context, log_total = saved
    heads, steps = operands[0].shape[:2]
    # As a product: sums of so few numbers take a CPU five times as long.
    letters = "NMBT" if context.ndim == 5 else "NMT"
    delta = product(f"{letters}H,{letters}H->{letters}", context.astype(F32), cotangent.astype(F32))

    def head(_, __, xs):
        operands, tables, words, saved = xs
        tables = of_distances(tables, rows)
        zeros = lambda x: jnp.zeros(x.shape, F32)

        def block(totals, index, _):
            first = index * g.block
            terms = block_terms(tables, first, g)

            def step(to_tables, _, xs):
                operands, masks, words, saved = xs
                queries, spans = block_inputs(operands, masks, words, first, g)
                saved = tuple(of_block(x, first, g, axis) for x, axis in zip(saved, (-1, -1, -2), strict=True))
                found = [block_gradients(queries, keys, terms, rule, saved) for keys in spans]
                whole = lambda parts: unsplit(parts, g.first_key(first), g)
                to_keys = whole([x.key for x in found]), whole([x.value for x in found])
                return add_to_tables(to_tables, found, first, g), (sum(x.query for x in found), *to_keys)

            to_tables, to_keys = totals
            to_tables, (to_query, *more) = loop(step, to_tables, (operands, masks, words, saved), steps)
            return (to_tables, jax.tree.map(jnp.add, to_keys, tuple(more))), to_query

        totals = jax.tree.map(zeros, (tables, tuple(x.swapaxes(-1, -2) for x in operands[1:])))
        (to_tables, to_keys), to_query = loop(block, totals, None, g.blocks)
        return None, (joined(to_query, -2), to_keys, to_tables)

    saved = (log_total, delta, cotangent)
    _, (to_query, to_keys, by_distance) = loop(head, None, (operands, tables, words, saved), heads)
    # Turned here and no earlier: next to its product XLA would undo both, and multiply by the slow way round.
    to_operands = (to_query, *(x.swapaxes(-1, -2) for x in to_keys))
    to_tables = tuple(
        None if table is None else jnp.zeros(table.shape, F32).at[:, index].add(gradient)
        for table, gradient, index in zip(tables, by_distance, rows, strict=True)
    )
    gradients = jax.tree.map(lambda g, x: g.astype(x.dtype), (to_operands, to_tables), (operands, tables))
    return *gradients, None, None, None


_attend.defvjp(_forward, _backward)
