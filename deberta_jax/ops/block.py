"""One block of queries against all keys of one head: its context, and its gradients by hand.

The gradients are written out (FlashAttention, Dao et al. 2022, section 3.1, and the shift's transpose) because the
automatic ones keep the scores of every head, and undo the shift with pads that cost a CPU 6 to 10 copies. Products
whose left factor is transposed are half as fast on a CPU as others, hence results of shape [..., H, S] in the backward.

Letters: b examples, T queries of the block, S all keys, W keys of the near window, n sub-blocks of w rows, H head size.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from deberta_jax.ops.dropout import weight_factor
from deberta_jax.ops.masking import MASKED, visible_pairs
from deberta_jax.ops.products import F32, product
from deberta_jax.ops.shift import slide, slide_back


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


class Tables(NamedTuple):
    """One side's table for one block: windows [n,c,H] of its rows by distance, and the far past's and future's row."""

    windows: Float[Array, "n c H"]
    past: Float[Array, " H"]
    future: Float[Array, " H"]


class Terms(NamedTuple):
    """What a block's position terms read; a term left out is None. ``first_key``: where the near window begins."""

    by_key: Tables | None
    by_query: Tables | None
    first_key: int | jax.Array


class Queries(NamedTuple):
    """A block's share of the inputs; ``texts`` and ``pairs`` as in ``masking.visible_pairs``.

    first: index in its text of the first query. words: of ``dropout.pair_words``, None where nothing is dropped.
    """

    query: Float[Array, "b T H"]
    texts: Int[Array, "b T"] | None
    pairs: Bool[Array, "b T S"] | None
    first: int | Int[Array, ""]
    words: UInt[Array, "2 b"] | None


class Keys(NamedTuple):
    """The whole text's inputs."""

    key: Float[Array, "b S H"]
    value: Float[Array, "b S H"]
    texts: Int[Array, "b S"] | None


class Rule(NamedTuple):
    """What is static of the scores: ``scale`` of their sum (1 where the operands carry it), and the dropout rate."""

    geometry: Geometry
    scale: float
    dropout_rate: float


def position_scores(x: Float[Array, "b T H"], windows: Float[Array, "n c H"]) -> Float[Array, "b T W"]:
    """Products of each row with the table row of its distance to each column."""
    examples, length, size = x.shape
    count, width, _ = windows.shape
    rows = length // count
    wide = product("bnwH,ncH->nbwc", x.reshape(examples, count, rows, size), windows)
    return slide(wide, rows, width - rows).swapaxes(0, 1).reshape(examples, length, width - rows)


def position_gradients(slope: Float[Array, "b T W"], x: Float[Array, "b T H"], windows: Float[Array, "n c H"]):
    """Of ``position_scores``: with respect to ``x`` [b,T,H], and to the windows [n,H,c]."""
    examples, length, size = x.shape
    count = windows.shape[0]
    rows = length // count
    wide = slide_back(slope.reshape(examples, count, rows, -1), rows, slope.shape[-1])
    to_x = product("bnwc,ncH->nbwH", wide, windows).swapaxes(0, 1).reshape(examples, length, size)
    return to_x, product("bnwH,bnwc->nHc", x.reshape(examples, count, rows, size), wide)


def near_part(x: Array, first, geometry: Geometry, axis: int) -> Array:
    """The near window's share of an axis over all keys."""
    return x if geometry.all_near else lax.dynamic_slice_in_dim(x, first, geometry.near, axis)


def far_sides(first, geometry: Geometry) -> tuple[Bool[Array, " S"], Bool[Array, " S"]]:
    """True for keys before the near window, and for keys after it."""
    index = jnp.arange(geometry.length)
    return index < first, index >= first + geometry.near


def far_products(x: Float[Array, "b T H"], tables: Tables) -> list[Float[Array, "b T"]]:
    return [product("bTH,H->bT", x, row) for row in (tables.past, tables.future)]


def raw_scores(queries: Queries, keys: Keys, terms: Terms, g: Geometry) -> Float[Array, "b T S"]:
    """Sum of the terms, float32. Far keys share a row a side: a product per token, not one per pair."""
    by_key, by_query, first = terms
    scores = product("bTH,bSH->bTS", queries.query, keys.key)
    near = []
    if by_key is not None:
        near.append(position_scores(queries.query, by_key.windows))
    if by_query is not None:
        near.append(position_scores(near_part(keys.key, first, g, 1), by_query.windows).swapaxes(-1, -2))
    if g.all_near or not near:
        return sum(near, scores)
    past, future = far_sides(first, g)
    if by_key is not None:
        old, new = far_products(queries.query, by_key)
        scores += jnp.where(past, old[..., None], jnp.where(future, new[..., None], 0.0))
    if by_query is not None:
        old, new = far_products(keys.key, by_query)
        scores += jnp.where(past, old, jnp.where(future, new, 0.0))[:, None]
    return lax.dynamic_update_slice_in_dim(scores, sum(near, near_part(scores, first, g, 2)), first, axis=2)


def masked_scores(queries: Queries, keys: Keys, terms: Terms, rule: Rule) -> Float[Array, "b T S"]:
    """Scaled scores, ``MASKED`` where the query may not read the key: a softmax turns those into exact zeros."""
    scores = raw_scores(queries, keys, terms, rule.geometry) * rule.scale
    pairs = visible_pairs(queries.texts, queries.pairs, key_texts=keys.texts)
    return scores if pairs is None else jnp.where(pairs, scores, MASKED)


def kept(queries: Queries, shape: tuple[int, ...], rate: float):
    """What dropout multiplies the weights with: the same array in forward and backward."""
    return 1.0 if queries.words is None else weight_factor(queries.words, queries.first, shape[-2], shape[-1], rate)


def block_context(queries: Queries, keys: Keys, terms: Terms, rule: Rule):
    """Context [b,T,H] and the logarithm of the softmax's denominator [b,T], float32."""
    scores = masked_scores(queries, keys, terms, rule)
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    # A query that may read nothing gets a denominator that makes all its weights zero, here and in the backward.
    total = jnp.where(top > MASKED, weights.sum(axis=-1, keepdims=True), jnp.inf)
    weights = weights * kept(queries, weights.shape, rule.dropout_rate)
    context = product("bTS,bSH->bTH", weights.astype(keys.value.dtype), keys.value) / total
    return context, (top + jnp.log(total))[..., 0]


class Gradients(NamedTuple):
    """Of one block: float32; of the tables' windows [n,H,c] with the far rows' beside [2,H], or None."""

    query: Float[Array, "b T H"]
    key: Float[Array, "b S H"]
    value: Float[Array, "b S H"]
    by_key: tuple | None
    by_query: tuple | None


def block_gradients(queries: Queries, keys: Keys, terms: Terms, rule: Rule, saved) -> Gradients:
    """Gradients from ``saved = (logarithm of the denominator [b,T], context . cotangent [b,T], cotangent [b,T,H])``."""
    (by_key, by_query, first), (log_total, delta, cotangent) = terms, saved
    g, dtype = rule.geometry, queries.query.dtype
    weights = jnp.exp(masked_scores(queries, keys, terms, rule) - log_total[..., None])
    factor = kept(queries, weights.shape, rule.dropout_rate)
    to_value = product("bTH,bTS->bHS", cotangent, (weights * factor).astype(dtype)).swapaxes(1, 2)
    slope = weights * (product("bTH,bSH->bTS", cotangent, keys.value) * factor - delta[..., None])
    slope = (slope * rule.scale).astype(dtype)
    to_query = product("bTS,bSH->bTH", slope, keys.key)
    to_key = product("bTH,bTS->bHS", queries.query, slope).swapaxes(1, 2)
    past, future = far_sides(first, g)
    to_by_key = to_by_query = None
    if by_key is not None:
        more, windows = position_gradients(near_part(slope, first, g, 2), queries.query, by_key.windows)
        to_query += more
        sums = [jnp.where(side, slope, 0).sum(2, dtype=F32) for side in (past, future)]
        more, rows = far_gradients(sums, queries.query, by_key, g)
        to_query, to_by_key = to_query + more, (windows, rows)
    if by_query is not None:
        near = near_part(keys.key, first, g, 1)
        more, windows = position_gradients(near_part(slope, first, g, 2).swapaxes(1, 2), near, by_query.windows)
        more = more if g.all_near else near_part(to_key, first, g, 1) + more
        to_key = to_key + more if g.all_near else lax.dynamic_update_slice_in_dim(to_key, more, first, axis=1)
        sums = [jnp.where(side, slope.sum(1, dtype=F32), 0) for side in (past, future)]
        more, rows = far_gradients(sums, keys.key, by_query, g)
        to_key, to_by_query = to_key + more, (windows, rows)
    return Gradients(to_query, to_key, to_value, to_by_key, to_by_query)


def far_gradients(sums, x: Float[Array, "b T H"], tables: Tables, g: Geometry):
    """Of ``far_products``, from the slopes' sums [b,T] a side: for ``x``, and for the two rows [2,H]."""
    if g.all_near:
        return 0.0, None
    sums = [side.astype(x.dtype) for side in sums]
    to_x = sum(product("bT,H->bTH", side, row) for side, row in zip(sums, (tables.past, tables.future), strict=True))
    return to_x, jnp.stack([product("bT,bTH->H", side, x) for side in sums])
