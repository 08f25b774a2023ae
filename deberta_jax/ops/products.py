"""Multiplies matrices with float32 accumulation, whatever the dtype of the operands."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deberta_jax.ops.cpu import einsum as cpu_einsum

F32 = jnp.float32


def product(
    spec: str,
    a: Float[Array, "..."],
    b: Float[Array, "..."],
    *,
    forward_mode: bool = False,
    gradient_dtype: Any = F32,
) -> Float[Array, "..."]:
    """Returns ``einsum(spec, a, b)`` in float32 from operands in the dtype of ``a``.

    The backward pass rounds the cotangent to that dtype first, so that its two products are of the same kind as the
    forward one. The automatic transpose would multiply float32 by bfloat16, which no matrix unit does.

    Where devices share the batch, each has a part of the sum that is the gradient of ``b``. They add up the results of
    its product, so the dtype of that product is the dtype in which they add: float32, whatever ``a`` has.

    Args:
      spec: has no ellipsis; every letter of an operand is in the other operand or in the result.
      a: an operand.
      b: the other one, such as a kernel. It is rounded to the dtype of ``a``; its gradient has its own dtype, and is
        not rounded to that of ``a``.
      forward_mode: leave derivatives to JAX, which then has them in forward mode too (``jax.jvp``).
      gradient_dtype: dtype of the product that is the gradient of ``b``. Bfloat16 halves what devices exchange.
        Programs for CPUs compute float32 and round afterwards.
    """
    if forward_mode:
        return _einsum(spec, a, b.astype(a.dtype))
    return _product(spec, _Dtypes(jnp.dtype(b.dtype), jnp.dtype(gradient_dtype)), a, b)


def align(a: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns ``a`` with leading axes of size 1 up to the rank of ``x``, for broadcasting that must be explicit."""
    return a.reshape((1,) * (x.ndim - a.ndim) + a.shape)


class _Dtypes(NamedTuple):
    """Holds the dtype of the second operand, and the one in which its gradient is computed and added up."""

    operand: Any
    gradient: Any


def _einsum(spec: str, a: jax.Array, b: jax.Array, out_dtype: Any = F32) -> jax.Array:
    # HIGHEST: on a TPU a float32 product is otherwise computed from bfloat16 halves of its operands.
    precision = lax.Precision.HIGHEST if a.dtype == F32 else None

    def multiply(spec: str, a: jax.Array, b: jax.Array, dtype: Any = F32) -> jax.Array:
        return jnp.einsum(spec, a, b, preferred_element_type=dtype, precision=precision)

    if a.dtype == F32 or (out_dtype == F32 and cpu_einsum.is_supported(spec)):
        return multiply(spec, a, b).astype(out_dtype)
    on_cpu = (
        multiply if cpu_einsum.is_supported(spec) else functools.partial(cpu_einsum.half_precision_einsum, multiply)
    )
    return lax.platform_dependent(
        a,
        b,
        cpu=lambda a, b: on_cpu(spec, a, b).astype(out_dtype),
        default=functools.partial(multiply, spec, dtype=out_dtype),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(spec: str, dtypes: _Dtypes, a: jax.Array, b: jax.Array):
    return _forward(spec, dtypes, a, b)[0]


def _forward(spec, dtypes, a, b):
    b = b.astype(a.dtype)
    return _einsum(spec, a, b), (a, b)


def _backward(spec, dtypes, saved, cotangent):
    a, b = saved
    operands, out = spec.split("->")
    left, right = operands.split(",")
    cotangent = cotangent.astype(a.dtype)
    return (
        _einsum(f"{out},{right}->{left}", cotangent, b).astype(a.dtype),
        _einsum(f"{left},{out}->{right}", a, cotangent, dtypes.gradient).astype(dtypes.operand),
    )


_product.defvjp(_forward, _backward)
