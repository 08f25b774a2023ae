"""Rounds float32 to bfloat16 at random, up or down, so that the expectation is the number itself."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, BFloat16, Float32

from deberta_jax.ops.dropout import element_index, mix


def round_at_random(x: Float32[Array, "..."], seeds: tuple[Any, Any]) -> BFloat16[Array, "..."]:
    """Returns ``x`` in bfloat16: of the two numbers next to each element the nearer one with higher probability.

    The probability of the upper one is the distance to the lower one, in units of the distance between them. Numbers
    that are NaN or infinite stay so.

    Args:
      x: an array of any shape.
      seeds: two uint32; with the index of an element they decide how it is rounded.
    """
    # As for dropout, the multiplication parts counters that share bits.
    counter = element_index(x.shape) * np.uint32(0x9E3779B1) + mix(jnp.asarray(seeds[0], jnp.uint32))
    noise = mix(counter, mix(jnp.asarray(seeds[1], jnp.uint32) + np.uint32(1))) & np.uint32(0xFFFF)
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    # Bfloat16 is the upper half of float32: the noise carries into it as often as the lower half says.
    upper = ((bits + noise) >> np.uint32(16)).astype(jnp.uint16)
    return jnp.where(jnp.isfinite(x), lax.bitcast_convert_type(upper, jnp.bfloat16), x.astype(jnp.bfloat16))
