"""Applies dropout to attention weights, so that every implementation drops the same ones.

The weight of example b, head n, query i and key j has the counter (i, j), 16 bits each, and random bits (two uint32)
that depend on the dropout key, b and n. See ``ops.dropout`` for the generator.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt

from deberta_jax.ops.dropout import is_kept, mix, uint32_of

MAX_LENGTH = 1 << 16  # a counter has 16 bits for the query and 16 for the key


def head_random_bits(seeds: tuple[Any, Any], head_index: Any) -> tuple[Any, Any]:
    """Returns the random bits, two uint32, for each ``head_index = example * heads + head`` (uint32)."""
    word = uint32_of(head_index)
    first = mix(head_index * word(0x9E3779B1) + seeds[0])
    return first, mix(first + seeds[1])


def is_weight_kept(random_bits: tuple[Any, Any], query: Any, key: Any, rate: float) -> Any:
    """Returns True where dropout keeps the weight of a query and a key, given their positions (uint32, broadcast)."""
    return is_kept(random_bits, (query << uint32_of(query)(16)) | key, rate)


def attention_random_bits(seeds: UInt[Array, "2"], batch: int, heads: int) -> UInt[Array, "2 B N"]:
    """Returns the random bits of every example and head, two uint32 [2,B,N]."""
    head_index = jnp.arange(batch * heads, dtype=jnp.uint32).reshape(batch, heads)
    return jnp.stack(head_random_bits((seeds[0], seeds[1]), head_index))


def dropout_factor(
    random_bits: UInt[Array, "2 *lead"], queries: UInt[Array, " T"], keys: UInt[Array, " S"], rate: float
) -> Float[Array, "*lead T S"]:
    """Returns the factors of attention weights, float32: 0 with probability ``rate``, else 1/(1-rate).

    Args:
      random_bits: those of the examples and heads in question, from ``attention_random_bits``.
      queries, keys: positions in the row.
      rate: probability that a weight is dropped.
    """
    lead = [1] * (random_bits.ndim - 1)
    broadcast_bits = (random_bits[0][..., None, None], random_bits[1][..., None, None])
    keep = is_weight_kept(broadcast_bits, queries.reshape(*lead, -1, 1), keys.reshape(*lead, 1, -1), rate)
    return jnp.where(keep, jnp.float32(1.0 / (1.0 - rate)), jnp.float32(0.0))


def keep_mask(
    seeds: UInt[np.ndarray, "2"], batch: int, heads: int, length: int, rate: float
) -> Bool[np.ndarray, "B N T T"]:
    """Returns the whole mask, computed by numpy: the same bits that kernels compute block by block.

    Self-checks and tests compare implementations with it.
    """
    head_index = np.arange(batch * heads, dtype=np.uint32).reshape(batch, heads, 1, 1)
    index = np.arange(length, dtype=np.uint32)
    with np.errstate(over="ignore"):
        random_bits = head_random_bits((seeds[0], seeds[1]), head_index)
        return is_weight_kept(random_bits, index[None, None, :, None], index[None, None, None, :], rate)
