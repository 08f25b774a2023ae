"""Dropout decided by a hash of where a number stands: no mask is stored, and every body drops the same weights.

A number is kept where the hash of its counter, under two words made from the key, falls below the threshold. An element
of an array has its index as the counter; attention weight (b, n, i, j) has (i, j), under words that (b, n) went into as
well. So the mask follows from the key alone, on any device, tile or block, forward and backward.

The mixing is that of MurmurHash3's finaliser (Appleby, public domain), a bijection of 32-bit words in which every input
bit reaches every output bit. The same lines run in numpy, in XLA and in a kernel: only unsigned multiplication,
exclusive or and shifts. On a CPU they take a fifteenth of the time of JAX's own generator, which would be a fifth of a
train step; a TPU's generator exists on no other machine, so nothing could test it.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, UInt

LONGEST = 1 << 16  # a counter has 16 bits for the query and 16 for the key


def threshold(rate: float) -> int:
    """Of 2**24 equally likely values, how many keep their weight."""
    return round((1.0 - rate) * (1 << 24))


def _mix(x: Any, added: Any = None) -> Any:
    word = type_of(x)
    x = (x ^ (x >> word(16))) * word(0x85EBCA6B)
    x = x if added is None else x ^ added
    x = (x ^ (x >> word(13))) * word(0xC2B2AE35)
    return x ^ (x >> word(16))


def type_of(x: Any) -> Any:
    """uint32 of the library that ``x`` belongs to."""
    return x.dtype.type


def stream(seeds: tuple[Any, Any], example_and_head: Any) -> tuple[Any, Any]:
    """Two words, uint32, for each ``b * heads + n`` (uint32)."""
    word = type_of(example_and_head)
    first = _mix(example_and_head * word(0x9E3779B1) + seeds[0])
    return first, _mix(first + seeds[1])


def kept(words: tuple[Any, Any], query: Any, key: Any, rate: float) -> Any:
    """True where the weight of this query and key position (uint32, broadcast) is kept."""
    return _kept(words, (query << type_of(query)(16)) | key, rate)


def _kept(words: tuple[Any, Any], counter: Any, rate: float) -> Any:
    # Without the multiplication counters some thousands apart share bits: correlations of 1.4 standard deviations.
    x = _mix(counter * type_of(counter)(0x9E3779B1) + words[0], words[1])
    return (x >> type_of(x)(8)).astype(np.int32) < threshold(rate)


def dropout_seeds(key: jax.Array) -> UInt[Array, "2"]:
    """The two words that masks are made from."""
    return jax.random.bits(key, (2,), jnp.uint32)


def dropout(x: Float[Array, "..."], rate: float, key: jax.Array | None) -> Float[Array, "..."]:
    """Inverted dropout of an array of up to 2**32 elements; as it is where ``key`` is None or the rate 0."""
    if key is None or rate == 0.0:
        return x
    # A sum of iotas rather than one over all elements: each device makes its own share.
    strides = [math.prod(x.shape[axis + 1 :]) for axis in range(x.ndim)]
    places = (lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(s) for axis, s in enumerate(strides))
    seeds = dropout_seeds(key)
    keep = _kept((seeds[0], seeds[1]), sum(places, jnp.zeros(x.shape, jnp.uint32)), rate)
    return jnp.where(keep, x * (1.0 / (1.0 - rate)), 0).astype(x.dtype)


def pair_words(seeds: UInt[Array, "2"], batch: int, heads: int) -> UInt[Array, "2 B N"]:
    """The words of every example and head."""
    at = jnp.arange(batch * heads, dtype=jnp.uint32).reshape(batch, heads)
    return jnp.stack(stream((seeds[0], seeds[1]), at))


def weight_factor(
    words: UInt[Array, "2 *lead"], queries: UInt[Array, " T"], keys: UInt[Array, " S"], rate: float
) -> Float[Array, "*lead T S"]:
    """What dropout multiplies the weights of ``queries`` x ``keys`` with: 0 with probability ``rate``, else 1/(1-rate).

    Args:
      words: of ``pair_words``, for the examples and heads at hand.
      queries, keys: indices in their text.
    """
    lead = [1] * (words.ndim - 1)
    of_pairs = (words[0][..., None, None], words[1][..., None, None])
    keep = kept(of_pairs, queries.reshape(*lead, -1, 1), keys.reshape(*lead, 1, -1), rate)
    return jnp.where(keep, jnp.float32(1.0 / (1.0 - rate)), jnp.float32(0.0))


def keep_mask(
    seeds: UInt[np.ndarray, "2"], batch: int, heads: int, length: int, rate: float
) -> Bool[np.ndarray, "B N T T"]:
    """The whole mask in numpy, for tests: the very bits that the kernel makes tile by tile."""
    at = np.arange(batch * heads, dtype=np.uint32).reshape(batch, heads, 1, 1)
    index = np.arange(length, dtype=np.uint32)
    with np.errstate(over="ignore"):
        words = stream((seeds[0], seeds[1]), at)
        return kept(words, index[None, None, :, None], index[None, None, None, :], rate)
