"""Computes which keys a query may attend to, and the softmax over those; shared by all implementations."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

F32 = jnp.float32
MASKED_SCORE = -1e30  # finite: the difference of two masked scores is 0, not NaN


def normalize_masks(
    attention_mask: Bool[Array, "B S"] | Bool[Array, "B T S"] | None, segment_ids: Int[Array, "B S"] | None
) -> tuple[Int[Array, "B S"] | None, Bool[Array, "B T S"] | None]:
    """Returns the masks in the form that implementations take, each None where it is not needed.

    Args:
      attention_mask: [B,S] True for real tokens, or [B,T,S] True where query t may attend to key s.
      segment_ids: [B,S] text of each token in a packed row, 0 for padding.

    Returns:
      segment_ids: int32 [B,S]; a query may attend to keys with the same id. 0 marks padding, also that of a [B,S] mask.
      attention_mask: the [B,T,S] mask, which holds in addition.
    """
    pairwise = attention_mask if attention_mask is not None and attention_mask.ndim == 3 else None
    tokens = None if pairwise is not None else attention_mask
    if segment_ids is None:
        return None if tokens is None else tokens.astype(jnp.int32), pairwise
    segment_ids = segment_ids.astype(jnp.int32)
    return segment_ids if tokens is None else jnp.where(tokens, segment_ids, 0), pairwise


def pairwise_mask(
    segment_ids: Int[Array, "... T"] | None,
    attention_mask: Bool[Array, "... T S"] | None = None,
    key_segment_ids: Int[Array, "... S"] | None = None,
) -> Bool[Array, "... T S"] | None:
    """Returns True where query t may attend to key s: same segment, and allowed by ``attention_mask``.

    Args:
      segment_ids: of the queries, 0 for padding; None: all are of one segment.
      attention_mask: holds in addition.
      key_segment_ids: of the keys, where they are not those of the queries.

    Returns:
      The mask, or None if every query may attend to every key.
    """
    if segment_ids is None:
        return attention_mask
    key_segment_ids = segment_ids if key_segment_ids is None else key_segment_ids
    same = (segment_ids[..., :, None] == key_segment_ids[..., None, :]) & (segment_ids != 0)[..., :, None]
    return same if attention_mask is None else attention_mask & same


def masked_softmax(
    scores: Float[Array, "... T S"], attention_mask: Bool[Array, "... #T #S"] | None
) -> Float[Array, "... T S"]:
    """Returns the softmax over the keys, float32; zeros for queries that may attend to nothing (Microsoft's rule)."""
    if attention_mask is None:
        return jax.nn.softmax(scores.astype(F32), axis=-1)
    scores = jnp.where(attention_mask, scores.astype(F32), MASKED_SCORE)
    maximum = lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.where(attention_mask, jnp.exp(scores - maximum), 0.0)
    denominator = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(denominator == 0, 1.0, denominator)


def segment_starts(
    token_mask: Bool[Array, "B T"] | None, segment_ids: Int[Array, "B T"] | None, length: int
) -> Int[Array, "#B #T"]:
    """Returns the index of the first real token of each token's text: int32 [B,T], [B,1], or [1,1] without masks.

    A row that is not packed holds one text, which starts at its first real token: left padding changes nothing.
    """
    if segment_ids is not None:
        index = jnp.arange(length, dtype=jnp.int32)[None]
        first = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        return lax.cummax(jnp.where(first, index, 0), axis=1)
    if token_mask is not None:
        return jnp.argmax(token_mask, axis=1, keepdims=True).astype(jnp.int32)
    return jnp.zeros((1, 1), jnp.int32)
