"""Applies dropout by a counter-based generator: no mask is stored, and no random state is kept.

An element is kept if a hash of its counter and of random bits (two uint32) falls below a threshold. The bits come from
the key; the counter is the element's index. The mask therefore follows from the key alone, on any device, in any
block, in the forward and the backward pass.

The hash mixes bits as MurmurHash3's finalizer does (Appleby, public domain). The finalizer is a bijection of 32-bit
words in which every input bit affects every output bit. It needs only unsigned multiplication, exclusive or and shifts,
so the same code runs in numpy, in XLA and in a Pallas kernel. On a CPU it takes a fifteenth of the time of JAX's own
generator, which would take a fifth of a training step. A TPU's hardware generator exists on no other machine, so
nothing could test it.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt


def dropout(x: Float[Array, "..."], rate: float, key: jax.Array | None) -> Float[Array, "..."]:
    """Returns ``x`` after inverted dropout, in its dtype.

    Args:
      x: an array of up to 2**32 elements.
      rate: probability that an element is set to 0; the others are multiplied by 1/(1-rate).
      key: None turns dropout off.
    """
    if key is None or rate == 0.0:
        return x
    seeds = dropout_seeds(key)
    keep = is_kept((seeds[0], seeds[1]), element_index(x.shape), rate)
    return jnp.where(keep, x * (1.0 / (1.0 - rate)), 0).astype(x.dtype)


def element_index(shape: tuple[int, ...]) -> UInt[Array, "..."]:
    """Returns the index of each element of an array in row-major order, uint32, modulo 2**32."""
    # A sum of iotas, not one iota over all elements: each device then computes only its own part.
    strides = [math.prod(shape[axis + 1 :]) % 2**32 for axis in range(len(shape))]
    offsets = (lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(s) for axis, s in enumerate(strides))
    return sum(offsets, jnp.zeros(shape, jnp.uint32))


def dropout_seeds(key: jax.Array) -> UInt[Array, "2"]:
    """Returns the random bits, uint32 [2], from which all masks of a key are computed."""
    return jax.random.bits(key, (2,), jnp.uint32)


def is_kept(random_bits: tuple[Any, Any], counter: Any, rate: float) -> Any:
    """Returns True where dropout keeps the element with this counter.

    Args:
      random_bits: two uint32, broadcast against ``counter``.
      counter: index of each element, uint32, of numpy, XLA or a kernel.
      rate: probability of False.
    """
    # Without the multiplication counters some thousands apart share bits: correlations of 1.4 standard deviations.
    x = mix(counter * uint32_of(counter)(0x9E3779B1) + random_bits[0], random_bits[1])
    return (x >> uint32_of(x)(8)).astype(np.int32) < keep_threshold(rate)


def keep_threshold(rate: float) -> int:
    """Returns how many of 2**24 equally likely values mean that an element is kept."""
    return round((1.0 - rate) * (1 << 24))


def mix(x: Any, added: Any = None) -> Any:
    """Returns MurmurHash3's finalizer of ``x``, uint32, with ``added`` combined by exclusive or halfway."""
    word = uint32_of(x)
    x = (x ^ (x >> word(16))) * word(0x85EBCA6B)
    x = x if added is None else x ^ added
    x = (x ^ (x >> word(13))) * word(0xC2B2AE35)
    return x ^ (x >> word(16))


def uint32_of(x: Any) -> Any:
    """Returns the type uint32 of the library that the array ``x`` belongs to, as a constructor of constants."""
    return x.dtype.type
