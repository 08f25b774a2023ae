"""Implements the convolution over neighbouring tokens that v2-xlarge and v2-xxlarge add after their first layer."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deberta_jax.ops.products import align, product


def token_convolution(
    x: Float[Array, "B T D"],
    kernel: Float[Array, "K I D"],
    bias: Float[Array, " D"],
    *,
    groups: int,
    segment_ids: Int[Array, "B T"] | None,
    forward_mode: bool = False,
    gradient_dtype: Any = jnp.float32,
) -> Float[Array, "B T D"]:
    """Returns the cross-correlation along T with a kernel of odd size, of the same length, float32.

    ``out[t] = sum_s kernel[s] . x[t + s - K//2]``. Tokens of other texts in a packed row count as zero, as tokens
    beyond the ends do, so that a text gets the result that it would get alone.

    Args:
      x: token vectors, zero at padding.
      kernel: taps, input features of a group (I = D / groups), output features; rounded to the dtype of x.
      bias: of the output features.
      groups: number of groups of features.
      segment_ids: text of each token in a packed row; None: one text per row.
      forward_mode, gradient_dtype: as for ``ops.products.product``.
    """
    taps, length = kernel.shape[0], x.shape[1]
    half = taps // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (0, 0)))
    grouped_kernel = kernel.reshape(taps, kernel.shape[1], groups, -1)
    segments = None if segment_ids is None else jnp.pad(segment_ids, ((0, 0), (half, half)), constant_values=0)
    out = align(bias.astype(jnp.float32), x)
    for tap in range(taps):
        neighbour = padded[:, tap : tap + length]
        if segments is not None and segment_ids is not None:
            same = segments[:, tap : tap + length] == segment_ids
            neighbour = jnp.where(same[..., None], neighbour, jnp.zeros((), x.dtype))
        neighbour = neighbour.reshape(*neighbour.shape[:2], groups, -1)
        tap_product = product(
            "BTGI,IGO->BTGO", neighbour, grouped_kernel[tap], forward_mode=forward_mode, gradient_dtype=gradient_dtype
        )
        out = out + tap_product.reshape(x.shape)
    return out
