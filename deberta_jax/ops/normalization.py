"""Implements LayerNorm in float32 for any input dtype: DeBERTa's epsilon, 1e-7, is not a normal float16 number."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deberta_jax.ops.products import F32, align


def layer_norm(
    x: Float[Array, "... D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"],
    epsilon: float,
    *,
    forward_mode: bool = False,
) -> Float[Array, "... D"]:
    """Returns the last axis normalized with biased variance and epsilon inside the root, float32.

    The backward pass (Ba et al. 2016) keeps x in its dtype and two numbers per row. The automatic one keeps two float32
    arrays of the size of x, and is used for ``forward_mode``: JAX then has derivatives in forward mode too.
    """
    return _forward(x, scale, bias, epsilon)[0] if forward_mode else _layer_norm(x, scale, bias, epsilon)


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
    normalized = (x.astype(F32) - mean) * root
    d_normalized = cotangent * align(scale.astype(F32), x)
    row_mean = lambda x: x.mean(axis=-1, keepdims=True)
    d_x = root * (d_normalized - row_mean(d_normalized) - normalized * row_mean(d_normalized * normalized))
    leading = tuple(range(x.ndim - 1))
    d_scale, d_bias = (cotangent * normalized).sum(leading), cotangent.sum(leading)
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


_layer_norm.defvjp(_forward, _backward)
