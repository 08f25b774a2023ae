"""One block of queries against all keys of one head: its context, and its gradients by hand.

The keys come in one or two spans. Near ones have a position term of their own for each query; far ones lie so far off
that all on a side read one row of a table, which therefore belongs to the key and not to the pair.

The gradients are written out (FlashAttention, Dao et al. 2022, section 3.1, and the shift's transpose) because the
automatic ones keep the scores of every head, and undo the shift with pads that cost a CPU 6 to 10 copies. Products
whose left factor is transposed are half as fast on a CPU as others, hence results of shape [..., H, S] in the backward.

Letters: *b examples, T queries of the block, S keys of a span, n sub-blocks of w rows (queries, or keys), c distances
that a sub-block meets, H head size. Arrays of a single example have no axis b: XLA can multiply a batch of one, but at
1x2048 that took 1.13 to 1.19 times as long.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from deberta_jax.ops import products
from deberta_jax.ops.attention.masks import MASKED, visible_pairs
from deberta_jax.ops.attention.xla import slide, slide_back
from deberta_jax.ops.dropout import weight_factor
from deberta_jax.ops.products import F32


class Tables(NamedTuple):
    """One side's table for one block: windows [n,c,H] of its rows by distance, and the far past's and future's row."""

    windows: Float[Array, "n c H"]
    past: Float[Array, " H"]
    future: Float[Array, " H"]


class Terms(NamedTuple):
    """What a block's position terms read; a term left out is None."""

    by_key: Tables | None
    by_query: Tables | None


class Queries(NamedTuple):
    """A block's share of the inputs.

    texts: as in ``masking.visible_pairs``. first: index in its text of the first query. words: of
    ``dropout.pair_words``, None where nothing is dropped.
    """

    query: Float[Array, "*b T H"]
    texts: Int[Array, "*b T"] | None
    first: int | Int[Array, ""]
    words: UInt[Array, "2 *b"] | None


class Keys(NamedTuple):
    """A span of the keys: the near window, or all others. Each is multiplied by itself, no scores are concatenated.

    index: of each key in its text. far: whether these are the others; future: which of them come after the window.
    """

    key: Float[Array, "*b S H"]
    value: Float[Array, "*b S H"]
    texts: Int[Array, "*b S"] | None
    pairs: Bool[Array, "*b T S"] | None
    index: UInt[Array, " S"]
    future: Bool[Array, " S"]
    far: bool


class Rule(NamedTuple):
    """What is static of the scores: ``scale`` of their sum (1 where the operands carry it), and the dropout rate."""

    scale: float
    dropout_rate: float


def product(spec: str, left: Float[Array, "..."], right: Float[Array, "..."]) -> Float[Array, "..."]:
    """``products.product``; ``spec`` has the letter b, which is left out where the arrays have no such axis."""
    letters = spec.split("->")[0].split(",")
    alone = any(x.ndim < len(of_x) for x, of_x in zip((left, right), letters, strict=True))
    return products.product(spec.replace("b", "") if alone else spec, left, right)


def in_rows(x: Float[Array, "*b T c"], count: int) -> Float[Array, "*b n w c"]:
    """Cut into sub-blocks."""
    return x.reshape(*x.shape[:-2], count, -1, x.shape[-1])


def out_of_rows(x: Float[Array, "n *b w c"]) -> Float[Array, "*b T c"]:
    """Sub-blocks, as a batch of products gives them, put together."""
    return lax.collapse(jnp.moveaxis(x, 0, -3), -3, -1)


def position_scores(x: Float[Array, "*b T H"], windows: Float[Array, "n c H"]) -> Float[Array, "*b T S"]:
    """Products of each row with the table row of its distance to each column."""
    count, width, _ = windows.shape
    rows = x.shape[-2] // count
    return out_of_rows(slide(product("bnwH,ncH->nbwc", in_rows(x, count), windows), rows, width - rows))


def position_gradients(slope: Float[Array, "*b T S"], x: Float[Array, "*b T H"], windows: Float[Array, "n c H"]):
    """Of ``position_scores``: with respect to ``x`` [*b,T,H], and to the windows [n,H,c]."""
    count = windows.shape[0]
    wide = slide_back(in_rows(slope, count))
    to_x = out_of_rows(product("bnwc,ncH->nbwH", wide, windows))
    return to_x, product("bnwH,bnwc->nHc", in_rows(x, count), wide)


def near_scores(query: Float[Array, "*b T H"], keys: Keys, terms: Terms) -> Float[Array, "*b T S"]:
    by_key, by_query = terms
    scores = product("bTH,bSH->bTS", query, keys.key)
    if by_key is not None:
        scores += position_scores(query, by_key.windows)
    if by_query is not None:
        scores += position_scores(keys.key, by_query.windows).swapaxes(-1, -2)
    return scores


def near_gradients(slope: Float[Array, "*b T S"], query: Float[Array, "*b T H"], keys: Keys, terms: Terms):
    """Of ``near_scores``: of queries, keys [*b,H,S], and for each table its windows [n,H,c] or None."""
    by_key, by_query = terms
    to_query = product("bTS,bSH->bTH", slope, keys.key)
    to_key = product("bTH,bTS->bHS", query, slope)
    to_by_key = to_by_query = None
    if by_key is not None:
        more, to_by_key = position_gradients(slope, query, by_key.windows)
        to_query += more
    if by_query is not None:
        more, to_by_query = position_gradients(slope.swapaxes(-1, -2), keys.key, by_query.windows)
        to_key += more.swapaxes(-1, -2)
    return to_query, to_key, to_by_key, to_by_query


def side_rows(tables: Tables, keys: Keys) -> Float[Array, "#*b S H"]:
    """The row that all pairs with a far key read."""
    rows = jnp.where(keys.future[:, None], tables.future[None], tables.past[None])
    return products.align(rows, keys.key).astype(F32)


def moved_keys(keys: Keys, terms: Terms) -> Float[Array, "*b S H"]:
    """Far keys with their row of ``by_key`` added.

    In float32 whatever the operands are: a sum of key and row, rounded, would be another model.
    """
    key = keys.key.astype(F32)
    return key if terms.by_key is None else key + side_rows(terms.by_key, keys)


def far_scores(query: Float[Array, "*b T H"], keys: Keys, terms: Terms) -> Float[Array, "*b T S"]:
    """Plain attention to moved keys, with a bias for each key: its product with its row of ``by_query``."""
    scores = product("bTH,bSH->bTS", query.astype(F32), moved_keys(keys, terms))
    if terms.by_query is None:
        return scores
    return scores + (keys.key.astype(F32) * side_rows(terms.by_query, keys)).sum(-1)[..., None, :]


def far_gradients(slope: Float[Array, "*b T S"], query: Float[Array, "*b T H"], keys: Keys, terms: Terms):
    """Of ``far_scores``: of queries, keys [*b,H,S], and for each table its far rows [2,H], past first, or None."""
    slope = slope.astype(F32)
    to_query = product("bTS,bSH->bTH", slope, moved_keys(keys, terms))
    to_key = to_moved = product("bTH,bTS->bHS", query.astype(F32), slope)
    sides = jnp.stack([~keys.future, keys.future]).astype(F32)
    to_by_key = to_by_query = None
    if terms.by_key is not None:
        to_by_key = product("fS,HS->fH", sides, of_all_examples(to_moved))
    if terms.by_query is not None:
        to_bias = slope.sum(-2)[..., None]
        to_key = to_moved + (to_bias * side_rows(terms.by_query, keys)).swapaxes(-1, -2)
        to_by_query = product("fS,SH->fH", sides, of_all_examples(to_bias * keys.key.astype(F32)))
    return to_query, to_key, to_by_key, to_by_query


def of_all_examples(x: Float[Array, "*b s t"]) -> Float[Array, "s t"]:
    return x.sum(axis=tuple(range(x.ndim - 2)))


def masked_scores(queries: Queries, keys: Keys, terms: Terms, scale: float) -> Float[Array, "*b T S"]:
    """Scaled scores, ``MASKED`` where the query may not read the key: a softmax turns those into exact zeros."""
    scores_of = far_scores if keys.far else near_scores
    scores = scores_of(queries.query, keys, terms) * scale
    pairs = visible_pairs(queries.texts, keys.pairs, key_texts=keys.texts)
    return scores if pairs is None else jnp.where(pairs, scores, MASKED)


def dropout_factor(queries: Queries, keys: Keys, rate: float):
    """What dropout multiplies the weights with: the same array in forward and backward."""
    if queries.words is None:
        return 1.0
    index = jnp.uint32(queries.first) + jnp.arange(queries.query.shape[-2], dtype=jnp.uint32)
    return weight_factor(queries.words, index, keys.index, rate)


def block_context(queries: Queries, spans: Sequence[Keys], terms: Terms, rule: Rule):
    """Context [*b,T,H] and the logarithm of the softmax's denominator [*b,T], float32."""
    scores = [masked_scores(queries, keys, terms, rule.scale) for keys in spans]
    top = functools.reduce(jnp.maximum, (x.max(axis=-1, keepdims=True) for x in scores))
    weights = [jnp.exp(x - top) for x in scores]
    # A query that may read nothing gets a denominator that makes all its weights zero, here and in the backward.
    total = jnp.where(top > MASKED, sum(x.sum(axis=-1, keepdims=True) for x in weights), jnp.inf)
    weights = [x * dropout_factor(queries, keys, rule.dropout_rate) for x, keys in zip(weights, spans, strict=True)]
    context = sum(
        product("bTS,bSH->bTH", x.astype(keys.value.dtype), keys.value) for x, keys in zip(weights, spans, strict=True)
    )
    return context / total, (top + jnp.log(total))[..., 0]


class Gradients(NamedTuple):
    """Of one block and one span of its keys, float32; of the tables the windows [n,H,c] or far rows [2,H], or None."""

    query: Float[Array, "*b T H"]
    key: Float[Array, "*b H S"]
    value: Float[Array, "*b H S"]
    by_key: Float[Array, "..."] | None
    by_query: Float[Array, "..."] | None


def block_gradients(queries: Queries, keys: Keys, terms: Terms, rule: Rule, saved) -> Gradients:
    """From ``saved = (logarithm of the denominator [*b,T], context . cotangent [*b,T], cotangent [*b,T,H])``."""
    log_total, delta, cotangent = saved
    dtype = queries.query.dtype
    scores = masked_scores(queries, keys, terms, rule.scale)
    # Masked scores have no weight by ``log_total`` alone. Asking for the maximum makes XLA write the scores down on a
    # CPU; else it takes exponentials as it slides, one at a time: 1.03 times the whole at 8x128, 1.06 at 4x512.
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - jnp.where(top > MASKED, log_total[..., None], jnp.inf))
    factor = dropout_factor(queries, keys, rule.dropout_rate)
    to_value = product("bTH,bTS->bHS", cotangent, (weights * factor).astype(dtype))
    slope = weights * (product("bTH,bSH->bTS", cotangent, keys.value) * factor - delta[..., None])
    slope = (slope * rule.scale).astype(dtype)
    gradients_of = far_gradients if keys.far else near_gradients
    to_query, to_key, to_by_key, to_by_query = gradients_of(slope, queries.query, keys, terms)
    return Gradients(to_query, to_key, to_value, to_by_key, to_by_query)
