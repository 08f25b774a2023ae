"""Computes disentangled attention by gather: the definition, which all other implementations are compared with.

    score[i,j] = (q_i . k_j  +  q_i . K[index(i-j)]  +  Q[index(i-j)] . k_j) * scale

K (``pos_key``) and Q (``pos_query``) are the relative table projected as keys and as queries; ``index`` is the paper's
delta (He et al. 2021, section 3.1), and ``scale`` is 1 / sqrt(H * (1 + number of position terms)). The first position
term is content-to-position (c2p), the second position-to-content (p2c). Both read the row of i - j: the released
weights were trained that way, although the paper's formula has j - i in the second one.

Derivatives are left to JAX's own rules, so they exist in forward mode too (``jax.jvp``, ``jax.jacfwd``, products with a
Hessian). The other implementations define their backward pass themselves, which JAX cannot differentiate forwards.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deberta_jax.ops import products
from deberta_jax.ops.attention.dropout import attention_random_bits, dropout_factor
from deberta_jax.ops.attention.inputs import AttentionInputs, check_array
from deberta_jax.ops.attention.masks import masked_softmax, pairwise_mask
from deberta_jax.ops.attention.relative_position import pairwise_index
from deberta_jax.ops.dropout import dropout_seeds


def reference_attention(inputs: AttentionInputs) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T T"]]:
    """Returns the context in the dtype of ``value``, and the attention weights before dropout, float32."""
    query, key = inputs.query, inputs.key
    product = functools.partial(products.product, forward_mode=True)
    scores = product("BTNH,BSNH->BNTS", query, key)
    index = jnp.asarray(pairwise_index(inputs.relative_index))[None, None]
    if inputs.pos_key is not None:
        c2p = product("BTNH,RNH->BNTR", query, inputs.pos_key)
        scores += jnp.take_along_axis(c2p, index, axis=-1)
    if inputs.pos_query is not None:
        p2c = product("BSNH,RNH->BNSR", key, inputs.pos_query)
        # Rows are keys here: gather for each key the row of every query, then transpose to [query, key].
        scores += jnp.take_along_axis(p2c, index.swapaxes(-1, -2), axis=-1).swapaxes(-1, -2)
    return attend_with_scores(scores * inputs.scale, inputs, forward_mode=True)


def attend_with_scores(
    scores: Float[Array, "B N T T"], inputs: AttentionInputs, *, forward_mode: bool = False
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T T"]]:
    """Returns the context and the weights before dropout, from scaled scores; with v1's talking heads if given.

    Args:
      forward_mode: as for ``ops.products.product``.
    """
    product = functools.partial(products.product, forward_mode=forward_mode)
    if inputs.attention_bias is not None:
        scores = scores + inputs.attention_bias.astype(scores.dtype)
    if inputs.score_modifier is not None:
        scores = _modified(scores, inputs.score_modifier)
    if inputs.mix_scores is not None:
        scores = product("BNTS,NM->BMTS", scores, inputs.mix_scores.astype(scores.dtype))
    mask = pairwise_mask(inputs.segment_ids, inputs.attention_mask)
    weights = masked_softmax(scores, None if mask is None else mask[:, None])
    dropped = weights
    if inputs.dropout_key is not None and inputs.dropout_rate > 0:
        batch, heads, length, _ = weights.shape
        random_bits = attention_random_bits(dropout_seeds(inputs.dropout_key), batch, heads)
        positions = jnp.arange(length, dtype=jnp.uint32)
        dropped = weights * dropout_factor(random_bits, positions, positions, inputs.dropout_rate)
    if inputs.mix_weights is not None:
        dropped = product("BNTS,NM->BMTS", dropped, inputs.mix_weights.astype(dropped.dtype))
    context = product("BNTS,BSNH->BTNH", dropped.astype(inputs.value.dtype), inputs.value)
    return context.astype(inputs.value.dtype), weights


def _modified(scores: jax.Array, modifier: Callable[..., Any]) -> jax.Array:
    """Returns the scores that a modifier makes of them. Raises InputError for anything of another shape or dtype."""
    positions = jnp.arange(scores.shape[-1], dtype=jnp.int32)[None, None]
    result = modifier(scores, query_index=positions[..., None], key_index=positions[:, :, None])
    check_array("score_modifier returned", result, scores.shape, scores.dtype.name)
    return result
