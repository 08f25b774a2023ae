"""Computes one vector of each text from the vectors of its tokens."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Pooling = Literal["mean", "cls", "max"]


def pool(
    states: Float[Array, "B T D"], segment_ids: Int[Array, "B T"], texts: int, pooling: Pooling
) -> Float[Array, "B P D"]:
    """Returns the vectors of the texts of packed rows, float32; those of texts that a row does not have are 0.

    Args:
      states: vectors of tokens.
      segment_ids: the number of each token's text in its row, from 1; 0 for padding.
      texts: the largest number of texts P in a row.
      pooling: the mean of a text's vectors (``mean``), that of its first token (``cls``), or for each element the
        largest (``max``). All tokens count, [CLS] and [SEP] too.
    """
    states = states.astype(jnp.float32)
    numbers = jnp.arange(1, texts + 1, dtype=segment_ids.dtype)
    if pooling == "max":

        def largest(number: jax.Array) -> jax.Array:
            own = (segment_ids == number)[..., None]
            return jnp.where(own.any(1), jnp.where(own, states, -jnp.inf).max(1), 0.0)

        return jnp.swapaxes(jax.lax.map(largest, numbers), 0, 1)
    own = segment_ids[:, None, :] == numbers[None, :, None]
    if pooling == "cls":
        own &= jnp.cumsum(own, -1) == 1
    total = jnp.einsum("BPT,BTD->BPD", own.astype(jnp.float32), states, precision="highest")
    return total / jnp.maximum(own.sum(-1, keepdims=True), 1)


def normalize(vectors: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Returns vectors divided by their length, of which those of length 0 stay 0."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
