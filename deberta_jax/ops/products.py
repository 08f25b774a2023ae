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

    def multiply(a: jax.Array, b: jax.Array, spec: str = spec) -> jax.Array:
        return jnp.einsum(spec, a, b, preferred_element_type=F32, precision=precision)

    operands, out = spec.split("->")
    left, right = operands.split(",")
    batch, rows, columns, summed = _axes(left, right, out)
    turned = batch + rows + summed, right if right.startswith(batch) else batch + summed + columns
    if a.dtype == F32 or (left, right) == turned:
        return multiply(a, b)

    def turn(a: jax.Array, b: jax.Array) -> jax.Array:
        # XLA's CPU backend cannot multiply half-precision matrices of which the first is turned. It turns that one
        # around in memory, but in larger programs a later pass undoes that, and they stop when run: hence the barrier.
        a = a.transpose([left.index(c) for c in turned[0]])
        b = b.transpose([right.index(c) for c in turned[1]])
        a, b = lax.optimization_barrier((a, b))
        return multiply(a, b, f"{turned[0]},{turned[1]}->{out}")

    return lax.platform_dependent(a, b, cpu=turn, default=multiply)


def _axes(left: str, right: str, out: str) -> tuple[str, str, str, str]:
    """Letters of a product: of the batch, of the first's rows, of the second's columns, and summed over."""
    batch = "".join(c for c in out if c in left and c in right)
    rows, columns = ("".join(c for c in out if c in own and c not in batch) for own in (left, right))
    return batch, rows, columns, "".join(c for c in left if c not in out)


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
