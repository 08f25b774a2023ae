"""Works around the half-precision products that XLA's CPU backend cannot compute.

Seen with jax 0.10.2: the backend multiplies bfloat16 and float16 matrices only if both operands are stored as a batch
of matrices in the order batch, rows, columns. A program with any other product of half precision fails when it runs.
Used by ``products`` alone, and only in programs for CPUs.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def is_supported(spec: str) -> bool:
    """Returns whether the CPU backend computes ``einsum(spec, ...)`` in half precision."""
    operands, out = spec.split("->")
    left, right = operands.split(",")
    batch = "".join(c for c in out if c in left and c in right)
    return all(letters.startswith(batch) for letters in (left, right, out)) and left[-1] not in out


def half_precision_einsum(
    multiply: Callable[[str, jax.Array, jax.Array], jax.Array], spec: str, a: jax.Array, b: jax.Array
) -> jax.Array:
    """Returns the float32 result of an einsum that is not supported.

    Single matrices are transposed in memory first. Batches of matrices are multiplied in float32, at half the speed:
    they are too small to gain by a transpose (measured: 1.0 to 1.1 times the time).

    Args:
      multiply: (spec, a, b) -> the einsum, float32, by XLA.
      spec: as in ``products.product``.
      a, b: half-precision operands.
    """
    rows, rows_first = _rows_first(spec)
    if not rows or a.shape[spec.index(rows[0])] == 1:
        return multiply(spec, a.astype(jnp.float32), b.astype(jnp.float32))
    return multiply(rows_first, _transpose(a, tuple(spec.index(c) for c in rows_first.split(",")[0])), b)


def _rows_first(spec: str) -> tuple[str, str]:
    """Returns the letters of the left matrix' rows, and ``spec`` with those first; ("", "") for batches of matrices."""
    operands, out = spec.split("->")
    left, right = operands.split(",")
    rows, summed = ("".join(c for c in left if (c in out) == kept) for kept in (True, False))
    if left != summed + rows or set(rows) & set(right) or not out.startswith(rows):
        return "", ""
    return rows, f"{rows}{summed},{right}->{out}"


def _transpose(a: jax.Array, order: tuple[int, ...]) -> jax.Array:
    """Returns ``a.transpose(order)``, stored in memory, made of two halves.

    XLA fuses a transpose of the whole array, even behind a barrier, into the product that reads it, and that product
    then fails.
    """
    halves = jnp.split(a, [a.shape[order[0]] // 2], axis=order[0])
    transposed = [lax.optimization_barrier(half).transpose(order) for half in halves]
    return lax.optimization_barrier(jnp.concatenate(transposed, axis=0))
