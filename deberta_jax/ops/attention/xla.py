"""Disentangled attention without a gather over activations: products by distance, then a shift.

The table row depends on i - j alone, so one product with the table expanded to its 2T-1 distances (a gather of
parameter rows) holds every position score, one column per distance; sliding row i by i places lines the columns up
with the keys. The slide is a reshape: of a [n, n+m] matrix, element (i, n-1-i+j) stands at flat index
(n-1) + i(n+m-1) + j, so cutting n-1 elements off the front and reading rows of n+m-1 gives element (i, j).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.ops.attention.masks import visible_pairs
from deberta_jax.ops.attention.reference import weigh_values
from deberta_jax.ops.products import F32, product


def _slide(x, n: int, m: int):
    flat = x.reshape((*x.shape[:-2], n * (n + m)))
    cut = functools.partial(lax.slice_in_dim, start_index=n - 1, limit_index=n - 1 + n * (n + m - 1), axis=-1)
    flat = lax.platform_dependent(flat, cpu=lambda flat: cut(_written_down(flat)), default=cut)
    return flat.reshape((*x.shape[:-2], n, n + m - 1))[..., :m]


def _written_down(flat: jax.Array):
    """The same and a zero: what then reads it on a CPU need not find out for each element which row it came from."""
    return jnp.concatenate((flat, _unknown_zeros(*flat.shape[:-1], 1, dtype=flat.dtype)), axis=-1)


def _unknown_zeros(*shape: int, dtype: Any):
    """Zeros that the compiler takes for unknown numbers: with known ones it makes a pad of a concatenation.

    A CPU copies the parts of a concatenation row by row, but asks of each element of a pad where it comes from.
    """
    return lax.optimization_barrier(jnp.zeros(shape, dtype))


def slide(x: Float[Array, "... n c"], n: int, m: int) -> Float[Array, "... n m"]:
    """``out[..., i, j] = x[..., i, n-1-i+j]`` for x of n rows and n+m columns."""
    return _slide_vjp(x, n, m)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _slide_vjp(x: jax.Array, n: int, m: int):
    return _slide(x, n, m)


def slide_back(y: Float[Array, "... n m"]) -> Float[Array, "... n c"]:
    """The transpose of ``slide``: ``out[..., i, n-1-i+j] = y[..., i, j]``, zero elsewhere."""
    return lax.platform_dependent(y, cpu=_slide_back_joined, default=_slide_back_padded)


def _slide_back_padded(y: jax.Array):
    n, m = y.shape[-2:]
    none = [(0, 0)] * (y.ndim - 2)
    flat = jnp.pad(y, [*none, (0, 0), (0, n - 1)]).reshape((*y.shape[:-2], n * (n + m - 1)))
    return jnp.pad(flat, [*none, (n - 1, 1)]).reshape((*y.shape[:-1], n + m))


def _slide_back_joined(y: jax.Array):
    n, m = y.shape[-2:]
    zeros = lambda *shape: _unknown_zeros(*y.shape[:-2], *shape, dtype=y.dtype)
    flat = jnp.concatenate((y, zeros(n, n - 1)), axis=-1).reshape((*y.shape[:-2], n * (n + m - 1)))
    return jnp.concatenate((zeros(n - 1), flat, zeros(1)), axis=-1).reshape((*y.shape[:-1], n + m))


_slide_vjp.defvjp(lambda x, n, m: (_slide(x, n, m), None), lambda n, m, _, y: (slide_back(y),))


def distance_rows(rows: Int[np.ndarray, " U"], *, descending: bool) -> Int[np.ndarray, " V"]:
    """The table's rows in the order of the distances, and one more that no score reads: 2T rows."""
    rows = rows[::-1] if descending else rows
    return np.append(rows, rows[-1])


def by_distance(table: Float[Array, "R N H"], rows: Int[np.ndarray, " U"], *, descending: bool):
    """The table with ``distance_rows`` in place of its rows: float32 [2T, N, H].

    In float32 for the sake of the gradient: many distances read one row, and their gradients are added up here.
    """
    return jnp.take(table.astype(F32), distance_rows(rows, descending=descending), axis=0, mode="clip")


def _position_scores(x: Float[Array, "B T N H"], table: Float[Array, "U N H"], stored: Any) -> Float[Array, "B N T T"]:
    """Products of each row with the table row of its distance to each column, in the dtype ``stored``.

    In up to four blocks of w rows: a block meets T+w of the 2T distances, so that much less passes through the shift.
    """
    length, blocks = x.shape[1], []
    width = max(128, -(-length // 4))
    for start in range(0, length, width):
        size = min(width, length - start)
        window = table[length - start - size : 2 * length - start].astype(x.dtype)
        # Table first: a TPU then lays the product out as the shift wants it.
        scores = product("UNH,BTNH->BNTU", window, x[:, start : start + size]).astype(stored)
        blocks.append(slide(scores, size, length))
    # Without the barrier the cast to float32 that follows is done first, and the copies are twice as large.
    return lax.optimization_barrier(blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=2))


def shift_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T N H"],
    value: Float[Array, "B T N H"],
    pos_key: Float[Array, "R N H"] | None,
    pos_query: Float[Array, "R N H"] | None,
    rows: Int[np.ndarray, " U"],
    *,
    scale: float,
    texts: Int[Array, "B T"] | None = None,
    pairs: Bool[Array, "B T T"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    mix_scores: Float[Array, "N N"] | None = None,
    mix_weights: Float[Array, "N N"] | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T T"]]:
    """Context and attention weights; arguments as in ``ops.attention.disentangled_attention``.

    Memory: the scores are whole, [B,N,T,T], and twice that during each shift. Position scores pass through the shift
    in the compute dtype: in bfloat16 that halves their traffic, in float32 it changes nothing. In float16, where a
    product of ordinary activations may exceed the largest number, 65504, they pass in float32.
    """
    stored = F32 if query.dtype == jnp.float16 else query.dtype
    scores = product("BTNH,BSNH->BNTS", query, key)
    if pos_key is not None:
        scores += _position_scores(query, by_distance(pos_key, rows, descending=True), stored).astype(F32)
    if pos_query is not None:
        turned = _position_scores(key, by_distance(pos_query, rows, descending=False), stored)
        scores += turned.swapaxes(-1, -2).astype(F32)
    return weigh_values(
        scores * scale,
        value,
        visible_pairs(texts, pairs),
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
        mix_scores=mix_scores,
        mix_weights=mix_weights,
    )
