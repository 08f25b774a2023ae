"""Defines the arguments that the attention entry passes to every implementation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AttentionInputs:
    """Holds the arrays and constants of one attention call.

    An implementation reads it while a program is traced. It is no pytree: what JAX transforms are its arrays.

    Attributes:
      query, key, value: [B,T,N,H], one dtype.
      pos_key: projected relative table of the content-to-position term [R,N,H]; None leaves the term out.
      pos_query: the same for the position-to-content term.
      relative_index: table row of each distance from -(T-1) to T-1, int32 [2T-1]; a constant of the program.
      scale: factor of the sum of all terms.
      segment_ids: int32 [B,T]; a query may attend to keys with the same id, and id 0 is padding. None: to all keys.
      attention_mask: bool [B,T,T], True where query t may attend to key s, in addition to ``segment_ids``; or None.
      dropout_rate: probability that a weight is dropped.
      dropout_key: JAX random key; None turns dropout off.
      mix_scores, mix_weights: maps across heads [N,N], before the softmax and after dropout (v1's talking heads).
      attention_bias: added to the scaled scores, before the talking heads.
      score_modifier: (scores [B,N,T,T], query_index [1,1,T,1], key_index [1,1,1,T]) -> scores, after the bias.

    The last four are given to implementations that hold whole scores alone.
    """

    query: Float[Array, "B T N H"]
    key: Float[Array, "B T N H"]
    value: Float[Array, "B T N H"]
    pos_key: Float[Array, "R N H"] | None
    pos_query: Float[Array, "R N H"] | None
    relative_index: Int[np.ndarray, " U"]
    scale: float
    segment_ids: Int[Array, "B T"] | None = None
    attention_mask: Bool[Array, "B T T"] | None = None
    dropout_rate: float = 0.0
    dropout_key: jax.Array | None = None
    mix_scores: Float[Array, "N N"] | None = None
    mix_weights: Float[Array, "N N"] | None = None
    attention_bias: Float[Array, "#B N T T"] | None = None
    score_modifier: Callable[..., Any] | None = None


def check_array(what: str, found: Any, shape: tuple[int, ...], dtype: str) -> None:
    """Checks what a user's function returned. ``what`` says which one. Raises InputError for another shape or dtype."""
    if isinstance(found, jax.Array) and (found.shape, found.dtype.name) == (shape, dtype):
        return
    said = f"{found.dtype}{list(found.shape)}" if isinstance(found, jax.Array) else type(found).__name__
    raise InputError(f"{what} {said}; expected {dtype}{list(shape)}")
