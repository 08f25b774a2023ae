"""LayerNorm in float32 whatever the input: DeBERTa's epsilon, 1e-7, is no normal number of float16."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deberta_jax.ops.products import F32, align


def layer_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], bias: Float[Array, " D"], epsilon: float
) -> Float[Array, "... D"]:
    """Normalises the last axis with biased variance, epsilon inside the root; float32 in and out of the sums.

    The backward (Ba et al. 2016) keeps x as it came and two numbers a row. The automatic one keeps two float32 arrays
    the size of x.
    """
    return _layer_norm(x, scale, bias, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float):
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
    wide = x.astype(F32)
    mean = wide.mean(axis=-1, keepdims=True)
    root = lax.rsqrt(jnp.square(wide - mean).mean(axis=-1, keepdims=True) + epsilon)
    out = (wide - mean) * root * align(scale.astype(F32), x) + align(bias.astype(F32), x)
    return out, (x, mean, root, scale, bias)


def _backward(epsilon, saved, cotangent):
    x, mean, root, scale, bias = saved
    normal = (x.astype(F32) - mean) * root
    to_normal = cotangent * align(scale.astype(F32), x)
    of_row = lambda x: x.mean(axis=-1, keepdims=True)
    to_x = root * (to_normal - of_row(to_normal) - normal * of_row(to_normal * normal))
    rows = tuple(range(x.ndim - 1))
    to_scale, to_bias = (cotangent * normal).sum(rows), cotangent.sum(rows)
    return to_x.astype(x.dtype), to_scale.astype(scale.dtype), to_bias.astype(bias.dtype)


_layer_norm.defvjp(_forward, _backward)
