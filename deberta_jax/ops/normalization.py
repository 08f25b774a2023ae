"""LayerNorm in float32 whatever the input: DeBERTa's epsilon, 1e-7, is no normal number of float16."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deberta_jax.ops.products import align

F32 = jnp.float32


def layer_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], bias: Float[Array, " D"], epsilon: float
) -> Float[Array, "... D"]:
    """Normalises the last axis with biased variance, epsilon inside the root; float32 in and out of the sums."""
    x = x.astype(F32)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    scale, bias = align(scale.astype(F32), x), align(bias.astype(F32), x)
    return centred * lax.rsqrt(variance + epsilon) * scale + bias
