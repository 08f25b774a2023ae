"""Computes disentangled attention without a gather over activations: by matrix products and a relative shift.

The table row depends on i - j alone. One product with the table, expanded to its 2T-1 distances (a gather of parameter
rows), gives all position scores, one column per distance. A relative shift then moves row i so that the columns stand
at their keys.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from deberta_jax.ops.attention.inputs import AttentionInputs
from deberta_jax.ops.attention.reference import attend_with_scores
from deberta_jax.ops.attention.relative_position import table_by_distance
from deberta_jax.ops.attention.relative_shift import position_scores
from deberta_jax.ops.products import F32, product


def xla_attention(inputs: AttentionInputs) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T T"]]:
    """Returns the context in the dtype of ``value``, and the attention weights before dropout, float32.

    Memory: the scores of all pairs [B,N,T,T], and twice that during each shift. Position scores pass through the shift
    in the compute dtype: in bfloat16 that halves their traffic. In float16 they pass in float32, since a product of
    ordinary activations may exceed the largest float16 number, 65504.
    """
    query, key, relative_index = inputs.query, inputs.key, inputs.relative_index
    stored = F32 if query.dtype == jnp.float16 else query.dtype
    scores = product("BTNH,BSNH->BNTS", query, key)
    if inputs.pos_key is not None:  # content-to-position, c2p
        table = table_by_distance(inputs.pos_key, relative_index, descending=True)
        scores += position_scores(query, table, stored).astype(F32)
    if inputs.pos_query is not None:  # position-to-content, p2c
        table = table_by_distance(inputs.pos_query, relative_index, descending=False)
        scores += position_scores(key, table, stored).swapaxes(-1, -2).astype(F32)
    return attend_with_scores(scores * inputs.scale, inputs)
