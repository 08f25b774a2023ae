"""Computes one block of queries against all keys of one head: its context, and its gradients by explicit formulas.

The keys come in one or two spans. Near keys have a position term for each query. Far keys are so far away that all keys
on a side read one row of a table: the term then belongs to the key and not to the pair.

The gradients are explicit (FlashAttention, Dao et al. 2022, section 3.1, and the transpose of the relative shift):
automatic ones keep the scores of every head.

Two workarounds for XLA's CPU backend, both seen with jax 0.10.2:
  Gradients of keys and values have the shape [..., H, S], not [..., S, H]: a product whose left factor is transposed
  takes twice as long as others.
  Arrays of a single example have no axis b: a batch of one took 1.13 to 1.19 times as long at 1x2048.

Letters: *b examples, T queries of the block, S keys of a span, n tiles of w rows (queries, or keys), c distances that a
tile meets, H head size.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from deberta_jax.ops import products
from deberta_jax.ops.attention.dropout import dropout_factor
from deberta_jax.ops.attention.masks import MASKED_SCORE, pairwise_mask
from deberta_jax.ops.attention.relative_shift import rel_shift, rel_unshift
from deberta_jax.ops.products import F32


class TableWindows(NamedTuple):
    """Holds what one block reads of one table: windows of its rows by distance, and the rows of far past and future."""

    windows: Float[Array, "n c H"]
    past: Float[Array, " H"]
    future: Float[Array, " H"]


class PositionTables(NamedTuple):
    """Holds what a block's position terms read; None for a term that the model leaves out."""

    pos_key: TableWindows | None
    pos_query: TableWindows | None


class QueryBlock(NamedTuple):
    """Holds the part of the inputs that belongs to a block of queries.

    Attributes:
      query: the queries.
      segment_ids: as in ``masks.pairwise_mask``.
      first: position of the first query in its row.
      random_bits: from ``dropout.attention_random_bits``; None where nothing is dropped.
    """

    query: Float[Array, "*b T H"]
    segment_ids: Int[Array, "*b T"] | None
    first: int | Int[Array, ""]
    random_bits: UInt[Array, "2 *b"] | None


class KeySpan(NamedTuple):
    """Holds a span of the keys: the near window, or all other keys. Spans are multiplied separately, never joined.

    Attributes:
      key, value: of the span.
      segment_ids: of the keys.
      attention_mask: of the block's queries and the keys.
      index: position of each key in its row.
      future: True for keys at or after the block's first query: of far keys, those after the near window.
      far: True for the span of the other keys.
    """

    key: Float[Array, "*b S H"]
    value: Float[Array, "*b S H"]
    segment_ids: Int[Array, "*b S"] | None
    attention_mask: Bool[Array, "*b T S"] | None
    index: UInt[Array, " S"]
    future: Bool[Array, " S"]
    far: bool


class ScoreOptions(NamedTuple):
    """Holds the constants of the scores: ``scale`` of their sum (1 where operands include it), and the dropout rate."""

    scale: float
    dropout_rate: float


class Softmax(NamedTuple):
    """Holds what the backward pass needs of a block's softmax.

    Attributes:
      logsumexp: logarithm of the softmax's denominator.
      delta: sum of context times cotangent.
      cotangent: derivative of the loss with respect to the context.
    """

    logsumexp: Float[Array, "*b T"]
    delta: Float[Array, "*b T"]
    cotangent: Float[Array, "*b T H"]


class BlockGradients(NamedTuple):
    """Holds the float32 gradients from one block and one span of keys.

    Attributes:
      d_query, d_key, d_value: of the operands.
      d_pos_key, d_pos_query: of the tables: windows [n,H,c] of near keys, or rows [2,H] of far ones (past, future);
        None for a term that is left out.
    """

    d_query: Float[Array, "*b T H"]
    d_key: Float[Array, "*b H S"]
    d_value: Float[Array, "*b H S"]
    d_pos_key: Float[Array, "..."] | None
    d_pos_query: Float[Array, "..."] | None


def block_context(
    queries: QueryBlock, spans: Sequence[KeySpan], tables: PositionTables, options: ScoreOptions
) -> tuple[Float[Array, "*b T H"], Float[Array, "*b T"]]:
    """Returns the context and the logsumexp of a block, float32."""
    scores = [masked_scores(queries, keys, tables, options.scale) for keys in spans]
    maximum = functools.reduce(jnp.maximum, (x.max(axis=-1, keepdims=True) for x in scores))
    weights = [jnp.exp(x - maximum) for x in scores]
    # A query that may attend to nothing gets an infinite denominator: all its weights are zero, also in the backward.
    denominator = jnp.where(maximum > MASKED_SCORE, sum(x.sum(axis=-1, keepdims=True) for x in weights), jnp.inf)
    weights = [x * _dropout(queries, keys, options.dropout_rate) for x, keys in zip(weights, spans, strict=True)]
    context = sum(
        block_product("bTS,bSH->bTH", x.astype(keys.value.dtype), keys.value)
        for x, keys in zip(weights, spans, strict=True)
    )
    return context / denominator, (maximum + jnp.log(denominator))[..., 0]


def block_gradients(
    queries: QueryBlock, keys: KeySpan, tables: PositionTables, options: ScoreOptions, saved: Softmax
) -> BlockGradients:
    """Returns the gradients from a block and one span of its keys."""
    logsumexp, delta, cotangent = saved
    dtype = queries.query.dtype
    scores = masked_scores(queries, keys, tables, options.scale)
    # Masked scores have weight 0 by ``logsumexp`` alone. The maximum is computed because XLA then stores the scores;
    # without it, XLA's CPU backend computes the exponentials inside the relative shift, one at a time: 1.03 times the
    # total time at 8x128, 1.06 at 4x512 (jax 0.10.2).
    maximum = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - jnp.where(maximum > MASKED_SCORE, logsumexp[..., None], jnp.inf))
    factor = _dropout(queries, keys, options.dropout_rate)
    d_value = block_product("bTH,bTS->bHS", cotangent, (weights * factor).astype(dtype))
    d_scores = weights * (block_product("bTH,bSH->bTS", cotangent, keys.value) * factor - delta[..., None])
    d_scores = (d_scores * options.scale).astype(dtype)
    gradients_of = far_gradients if keys.far else near_gradients
    d_query, d_key, d_pos_key, d_pos_query = gradients_of(d_scores, queries.query, keys, tables)
    return BlockGradients(d_query, d_key, d_value, d_pos_key, d_pos_query)


def masked_scores(queries: QueryBlock, keys: KeySpan, tables: PositionTables, scale: float) -> Float[Array, "*b T S"]:
    """Returns scaled scores, ``MASKED_SCORE`` where the query may not attend to the key: its weight is exactly 0."""
    scores_of = far_scores if keys.far else near_scores
    scores = scores_of(queries.query, keys, tables) * scale
    mask = pairwise_mask(queries.segment_ids, keys.attention_mask, key_segment_ids=keys.segment_ids)
    return scores if mask is None else jnp.where(mask, scores, MASKED_SCORE)


def near_scores(query: Float[Array, "*b T H"], keys: KeySpan, tables: PositionTables) -> Float[Array, "*b T S"]:
    """Returns the sum of the three terms for near keys."""
    pos_key, pos_query = tables
    scores = block_product("bTH,bSH->bTS", query, keys.key)
    if pos_key is not None:
        scores += position_scores(query, pos_key.windows)
    if pos_query is not None:
        scores += position_scores(keys.key, pos_query.windows).swapaxes(-1, -2)
    return scores


def near_gradients(
    d_scores: Float[Array, "*b T S"], query: Float[Array, "*b T H"], keys: KeySpan, tables: PositionTables
):
    """Returns the gradients of ``near_scores``: queries, keys [*b,H,S], each table's windows [n,H,c] or None."""
    pos_key, pos_query = tables
    d_query = block_product("bTS,bSH->bTH", d_scores, keys.key)
    d_key = block_product("bTH,bTS->bHS", query, d_scores)
    d_pos_key = d_pos_query = None
    if pos_key is not None:
        more, d_pos_key = position_gradients(d_scores, query, pos_key.windows)
        d_query += more
    if pos_query is not None:
        more, d_pos_query = position_gradients(d_scores.swapaxes(-1, -2), keys.key, pos_query.windows)
        d_key += more.swapaxes(-1, -2)
    return d_query, d_key, d_pos_key, d_pos_query


def position_scores(x: Float[Array, "*b T H"], windows: Float[Array, "n c H"]) -> Float[Array, "*b T S"]:
    """Returns the products of each row with the table row of its distance to each column."""
    tiles, distances, _ = windows.shape
    tile = x.shape[-2] // tiles
    return join_tiles(
        rel_shift(block_product("bnwH,ncH->nbwc", split_tiles(x, tiles), windows), tile, distances - tile)
    )


def position_gradients(d_scores: Float[Array, "*b T S"], x: Float[Array, "*b T H"], windows: Float[Array, "n c H"]):
    """Returns the gradients of ``position_scores``: of ``x`` [*b,T,H], and of the windows [n,H,c]."""
    tiles = windows.shape[0]
    d_products = rel_unshift(split_tiles(d_scores, tiles))
    d_x = join_tiles(block_product("bnwc,ncH->nbwH", d_products, windows))
    return d_x, block_product("bnwH,bnwc->nHc", split_tiles(x, tiles), d_products)


def far_scores(query: Float[Array, "*b T H"], keys: KeySpan, tables: PositionTables) -> Float[Array, "*b T S"]:
    """Returns the sum of the three terms for far keys.

    That is plain attention to the sums of key and ``pos_key`` row, and a bias for each key: its product with its
    ``pos_query`` row.
    """
    scores = block_product("bTH,bSH->bTS", query.astype(F32), key_plus_row(keys, tables))
    if tables.pos_query is None:
        return scores
    return scores + (keys.key.astype(F32) * far_rows(tables.pos_query, keys)).sum(-1)[..., None, :]


def far_gradients(
    d_scores: Float[Array, "*b T S"], query: Float[Array, "*b T H"], keys: KeySpan, tables: PositionTables
):
    """Returns the gradients of ``far_scores``: queries, keys [*b,H,S], and of each table its far rows [2,H] or None."""
    d_scores = d_scores.astype(F32)
    d_query = block_product("bTS,bSH->bTH", d_scores, key_plus_row(keys, tables))
    d_key = d_sum = block_product("bTH,bTS->bHS", query.astype(F32), d_scores)
    sides = jnp.stack([~keys.future, keys.future]).astype(F32)
    d_pos_key = d_pos_query = None
    if tables.pos_key is not None:
        d_pos_key = block_product("fS,HS->fH", sides, sum_examples(d_sum))
    if tables.pos_query is not None:
        d_bias = d_scores.sum(-2)[..., None]
        d_key = d_sum + (d_bias * far_rows(tables.pos_query, keys)).swapaxes(-1, -2)
        d_pos_query = block_product("fS,SH->fH", sides, sum_examples(d_bias * keys.key.astype(F32)))
    return d_query, d_key, d_pos_key, d_pos_query


def key_plus_row(keys: KeySpan, tables: PositionTables) -> Float[Array, "*b S H"]:
    """Returns far keys plus their row of ``pos_key``, in float32: a sum rounded to bfloat16 would be another model."""
    key = keys.key.astype(F32)
    return key if tables.pos_key is None else key + far_rows(tables.pos_key, keys)


def far_rows(table: TableWindows, keys: KeySpan) -> Float[Array, "#*b S H"]:
    """Returns the table row that all pairs with a far key read, for each key, float32."""
    rows = jnp.where(keys.future[:, None], table.future[None], table.past[None])
    return products.align(rows, keys.key).astype(F32)


def _dropout(queries: QueryBlock, keys: KeySpan, rate: float):
    """Returns the dropout factors of the block's weights: the same array in the forward and the backward pass."""
    if queries.random_bits is None:
        return 1.0
    index = jnp.uint32(queries.first) + jnp.arange(queries.query.shape[-2], dtype=jnp.uint32)
    return dropout_factor(queries.random_bits, index, keys.index, rate)


def block_product(spec: str, left: Float[Array, "..."], right: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns ``products.product``, without the letter b of ``spec`` where the arrays have no such axis."""
    letters = spec.split("->")[0].split(",")
    single = any(x.ndim < len(axes) for x, axes in zip((left, right), letters, strict=True))
    return products.product(spec.replace("b", "") if single else spec, left, right)


def split_tiles(x: Float[Array, "*b T c"], tiles: int) -> Float[Array, "*b n w c"]:
    """Returns the rows split into tiles."""
    return x.reshape(*x.shape[:-2], tiles, -1, x.shape[-1])


def join_tiles(x: Float[Array, "n *b w c"]) -> Float[Array, "*b T c"]:
    """Returns the tiles, with their axis first as a batched product gives it, joined again."""
    return lax.collapse(jnp.moveaxis(x, 0, -3), -3, -1)


def sum_examples(x: Float[Array, "*b s t"]) -> Float[Array, "s t"]:
    """Returns the sum over examples."""
    return x.sum(axis=tuple(range(x.ndim - 2)))
