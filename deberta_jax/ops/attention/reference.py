"""Disentangled attention by gather: the definition, slow and obvious, and the judge of every other body.

score[i,j] = (q_i . k_j  +  q_i . K[row(i-j)]  +  Q[row(i-j)] . k_j) * scale, where K and Q are the projected relative
table (He et al. 2021, section 3.1). The position-to-content term reads the row of i - j like the other one: the
weights were trained so, whatever the paper's index says.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.ops.attention.masks import masked_softmax, visible_pairs
from deberta_jax.ops.dropout import dropout_seeds, pair_words, weight_factor
from deberta_jax.ops.products import product


def pair_rows(rows: Int[np.ndarray, " U"]) -> Int[np.ndarray, "T T"]:
    """Rows by distance [2T-1] -> rows by (query, key) [T,T]."""
    length = (len(rows) + 1) // 2
    index = np.arange(length)
    return rows[index[:, None] - index[None, :] + length - 1]


def reference_attention(
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
    mix_scores: Float[Array, "N N"] | None = None,
    mix_weights: Float[Array, "N N"] | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T T"]]:
    """Context and attention weights; arguments as in ``ops.attention.disentangled_attention``."""
    scores = product("BTNH,BSNH->BNTS", query, key)
    index = jnp.asarray(pair_rows(rows))[None, None]
    if pos_key is not None:
        by_row = product("BTNH,RNH->BNTR", query, pos_key)
        scores += jnp.take_along_axis(by_row, index, axis=-1)
    if pos_query is not None:
        by_row = product("BSNH,RNH->BNSR", key, pos_query)
        scores += jnp.take_along_axis(by_row, index.swapaxes(-1, -2), axis=-1).swapaxes(-1, -2)
    return weigh_values(
        scores * scale,
        value,
        visible_pairs(texts, pairs),
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
        mix_scores=mix_scores,
        mix_weights=mix_weights,
    )


def weigh_values(
    scores: Float[Array, "B N T T"],
    value: Float[Array, "B T N H"],
    pairs: Bool[Array, "B T T"] | None,
    *,
    dropout_rate: float,
    dropout_key: jax.Array | None,
    mix_scores: Float[Array, "N N"] | None,
    mix_weights: Float[Array, "N N"] | None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T T"]]:
    """Scaled scores -> (context, weights before dropout), with v1's talking heads where given."""
    if mix_scores is not None:
        scores = product("BNTS,NM->BMTS", scores, mix_scores.astype(scores.dtype))
    weights = masked_softmax(scores, None if pairs is None else pairs[:, None])
    dropped = weights
    if dropout_key is not None and dropout_rate > 0:
        batch, heads, length, _ = weights.shape
        words, index = pair_words(dropout_seeds(dropout_key), batch, heads), jnp.arange(length, dtype=jnp.uint32)
        dropped = weights * weight_factor(words, index, index, dropout_rate)
    if mix_weights is not None:
        dropped = product("BNTS,NM->BMTS", dropped, mix_weights.astype(dropped.dtype))
    context = product("BNTS,BSNH->BTNH", dropped.astype(value.dtype), value)
    return context.astype(value.dtype), weights
