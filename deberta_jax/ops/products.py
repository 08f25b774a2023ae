"""Matrix products that accumulate in float32 whatever the operands are, and what is added to them."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

F32 = jnp.float32


def _einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    # HIGHEST: on TPU a float32 product is otherwise computed from bfloat16 halves of its operands.
    precision = lax.Precision.HIGHEST if a.dtype == F32 else None

    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(spec, a, b, preferred_element_type=F32, precision=precision)

    if a.dtype == F32 or _needs_no_turning(spec):
        return multiply(a, b)

    def multiply_on_cpu(a: jax.Array, b: jax.Array) -> jax.Array:
        rows, upright = _upright(spec)
        if not rows or a.shape[spec.index(rows[0])] == 1:
            return multiply(a.astype(F32), b.astype(F32))
        return _einsum(upright, _turn(a, tuple(spec.index(c) for c in upright.split(",")[0])), b)

    return lax.platform_dependent(a, b, cpu=multiply_on_cpu, default=multiply)


def _needs_no_turning(spec: str) -> bool:
    """False for a product whose operands do not lie as a batch of matrices does: batch, rows, columns.

    XLA's CPU backend cannot multiply half-precision matrices of which the first is turned. In float32 it can, at half
    the speed: hence ``_turn``, but for batches of matrices, too small to gain by it (1.0 to 1.1 times the time).
    """
    operands, out = spec.split("->")
    left, right = operands.split(",")
    batch = "".join(c for c in out if c in left and c in right)
    return all(letters.startswith(batch) for letters in (left, right, out)) and left[-1] not in out


def _upright(spec: str) -> tuple[str, str]:
    """The letters of the left matrix' rows and ``spec`` with those first; ("", "") unless both are single matrices."""
    operands, out = spec.split("->")
    left, right = operands.split(",")
    rows, summed = ("".join(c for c in left if (c in out) == kept) for kept in (True, False))
    if left != summed + rows or set(rows) & set(right) or not out.startswith(rows):
        return "", ""
    return rows, f"{rows}{summed},{right}->{out}"


def _turn(a: jax.Array, order: tuple[int, ...]) -> jax.Array:
    """``a.transpose(order)`` in memory, made of two halves.

    A transpose in one piece, even behind a barrier, XLA makes part of the product that reads it, which then stops the
    program when it is run on a CPU.
    """
    halves = jnp.split(a, [a.shape[order[0]] // 2], axis=order[0])
    turned = [lax.optimization_barrier(half).transpose(order) for half in halves]
    return lax.optimization_barrier(jnp.concatenate(turned, axis=0))


def align(a: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``a`` with leading axes of size 1 up to the rank of ``x``: broadcasting said aloud, so that it may be strict."""
    return a.reshape((1,) * (x.ndim - a.ndim) + a.shape)


def product(spec: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """``einsum(spec, a, b)`` in float32 from operands of one dtype.

    The backward rounds the cotangent to the operands' dtype first, so that its two products are of the same kind as
    the forward one: the automatic transpose would multiply float32 by bfloat16, which no matrix unit does.

    ``spec`` has no ellipsis, and every letter of an operand stands in the other operand or in the result.
    """
    return _product(spec, a, b)


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
