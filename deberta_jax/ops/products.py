"""Multiplies matrices with float32 accumulation, whatever the dtype of the operands."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deberta_jax.ops.cpu import einsum as cpu_einsum

F32 = jnp.float32


def product(
    spec: str, a: Float[Array, "..."], b: Float[Array, "..."], *, forward_mode: bool = False
) -> Float[Array, "..."]:
    """Returns ``einsum(spec, a, b)`` in float32 from operands of one dtype.

    The backward pass rounds the cotangent to the operands' dtype first, so that its two products are of the same kind
    as the forward one. The automatic transpose would multiply float32 by bfloat16, which no matrix unit does.

    Args:
      spec: has no ellipsis; every letter of an operand is in the other operand or in the result.
      a, b: operands of one dtype.
      forward_mode: leave derivatives to JAX, which then has them in forward mode too (``jax.jvp``).
    """
    return (_einsum if forward_mode else _product)(spec, a, b)


def align(a: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns ``a`` with leading axes of size 1 up to the rank of ``x``, for broadcasting that must be explicit."""
    return a.reshape((1,) * (x.ndim - a.ndim) + a.shape)


def _einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    # HIGHEST: on a TPU a float32 product is otherwise computed from bfloat16 halves of its operands.
    precision = lax.Precision.HIGHEST if a.dtype == F32 else None

    def multiply(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(spec, a, b, preferred_element_type=F32, precision=precision)

    if a.dtype == F32 or cpu_einsum.is_supported(spec):
        return multiply(spec, a, b)
    return lax.platform_dependent(
        a,
        b,
        cpu=functools.partial(cpu_einsum.half_precision_einsum, multiply, spec),
        default=functools.partial(multiply, spec),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(spec: str, a: jax.Array, b: jax.Array):
    return _einsum(spec, a, b)


def _forward(spec, a, b):
    return _einsum(spec, a, b), (a, b)


def _backward(spec, saved, cotangent):
    a, b = saved
    operands, out = spec.split("->")
    left, right = operands.split(",")
    cotangent = cotangent.astype(a.dtype)
    return (
        _einsum(f"{out},{right}->{left}", cotangent, b).astype(a.dtype),
        _einsum(f"{left},{out}->{right}", a, cotangent).astype(b.dtype),
    )


_product.defvjp(_forward, _backward)
