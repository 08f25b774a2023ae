"""Moves each row of position scores so that its columns stand at their keys (Transformer-XL's relative shift).

The shift is a reshape. In a [n, n+m] matrix, element (i, n-1-i+j) has the flat index (n-1) + i(n+m-1) + j. Without its
first n-1 elements, and read in rows of n+m-1, the matrix has that element at (i, j).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deberta_jax.ops.attention.cpu import relative_shift as cpu
from deberta_jax.ops.products import product


def rel_shift(x: Float[Array, "... n c"], n: int, m: int) -> Float[Array, "... n m"]:
    """Returns ``out[..., i, j] = x[..., i, n-1-i+j]`` for x of n rows and n+m columns."""
    return _rel_shift_vjp(x, n, m)


def bias_by_distance(bias: Float[Array, "N U"], length: int) -> Float[Array, "1 N T T"]:
    """Returns the bias of each query and key, from that of each distance.

    Args:
      bias: at index ``T-1 + query - key``, as ``relative_index`` is ordered; U is 2T-1.
      length: number T of tokens.
    """
    descending = jnp.pad(bias[:, ::-1], ((0, 0), (0, 1)))
    rows = jnp.broadcast_to(descending[:, None], (bias.shape[0], length, 2 * length))
    return rel_shift(rows, length, length)[None]


def rel_unshift(y: Float[Array, "... n m"]) -> Float[Array, "... n c"]:
    """Returns the transpose of ``rel_shift``: ``out[..., i, n-1-i+j] = y[..., i, j]``, zero elsewhere."""
    return lax.platform_dependent(y, cpu=cpu.rel_unshift, default=_rel_unshift)


def position_scores(x: Float[Array, "B T N H"], table: Float[Array, "W N H"], stored: Any) -> Float[Array, "B N T T"]:
    """Returns the products of each token with the table row of its distance to each other token.

    Computed in up to four blocks of tokens: a block of w tokens meets T+w of the 2T distances, so that less passes
    through the shift.

    Args:
      x: queries or keys.
      table: one row per distance [2T,N,H], from ``table_by_distance``.
      stored: dtype of the scores during the shift, and of the result.
    """
    length, blocks = x.shape[1], []
    block_size = max(128, -(-length // 4))
    for start in range(0, length, block_size):
        size = min(block_size, length - start)
        window = table[length - start - size : 2 * length - start].astype(x.dtype)
        # With the table as the left operand, a TPU lays the product out as the shift needs it (seen with jax 0.10.2).
        scores = product("WNH,BTNH->BNTW", window, x[:, start : start + size]).astype(stored)
        blocks.append(rel_shift(scores, size, length))
    # Without the barrier XLA moves the caller's cast to float32 before the shift, whose copies are then twice as large
    # (seen with jax 0.10.2 on TPUs).
    return lax.optimization_barrier(blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=2))


def _rel_shift(x: jax.Array, n: int, m: int) -> jax.Array:
    flat = x.reshape((*x.shape[:-2], n * (n + m)))
    cut = functools.partial(lax.slice_in_dim, start_index=n - 1, limit_index=n - 1 + n * (n + m - 1), axis=-1)
    flat = lax.platform_dependent(flat, cpu=lambda flat: cut(cpu.materialized(flat)), default=cut)
    return flat.reshape((*x.shape[:-2], n, n + m - 1))[..., :m]


def _rel_unshift(y: jax.Array) -> jax.Array:
    n, m = y.shape[-2:]
    none = [(0, 0)] * (y.ndim - 2)
    flat = jnp.pad(y, [*none, (0, 0), (0, n - 1)]).reshape((*y.shape[:-2], n * (n + m - 1)))
    return jnp.pad(flat, [*none, (n - 1, 1)]).reshape((*y.shape[:-1], n + m))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _rel_shift_vjp(x: jax.Array, n: int, m: int):
    return _rel_shift(x, n, m)


_rel_shift_vjp.defvjp(lambda x, n, m: (_rel_shift(x, n, m), None), lambda n, m, _, d_out: (rel_unshift(d_out),))
