"""Implements the activations that a ``config.json`` may name, with transformers' definitions (its ``ACT2FN``)."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deberta_jax.ops.products import F32


def _erf_gelu(x: jax.Array) -> jax.Array:
    """Returns PyTorch's GELU, which DeBERTa uses. JAX's default is the tanh form; its exact one is slow on a CPU."""
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))


_tanh_gelu = functools.partial(jax.nn.gelu, approximate=True)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _erf_gelu,
    "gelu_10": lambda x: jnp.clip(_erf_gelu(x), -10, 10),
    "gelu_accurate": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_python": _erf_gelu,
    "gelu_python_tanh": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "hardswish": jax.nn.hard_swish,
    "laplace": lambda x: 0.5 * (1 + lax.erf((x - 0.707107) / (0.282095 * math.sqrt(2)))),
    "leaky_relu": jax.nn.leaky_relu,
    "linear": lambda x: x,
    "mish": jax.nn.mish,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "sqrtsoftplus": lambda x: jnp.sqrt(jax.nn.softplus(x)),
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def activate(name: str, x: Float[Array, "..."], *, forward_mode: bool = False) -> Float[Array, "..."]:
    """Returns the activation of that name, computed in float32, in the dtype of ``x``.

    Args:
      forward_mode: leave derivatives to JAX, which then has them in forward mode too (``jax.jvp``).
    """
    return (_compute if forward_mode else _activate)(name, x)


def _compute(name: str, x: jax.Array) -> jax.Array:
    return ACTIVATIONS[name](x.astype(F32)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _activate(name: str, x: jax.Array):
    return _compute(name, x)


def _backward(name: str, x: jax.Array, cotangent: jax.Array):
    return jax.vjp(functools.partial(_compute, name), x)[1](cotangent)


# The backward pass keeps only x and computes the derivative from it. The automatic one keeps two or three float32
# arrays of its size, which in a feed-forward block are the largest of a layer.
_activate.defvjp(lambda name, x: (_activate(name, x), x), _backward)
