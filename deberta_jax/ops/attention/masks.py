"""Which keys a query may read, and the softmax over them: shared by every attention body."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

F32 = jnp.float32
MASKED = -1e30  # finite: the difference of two masked scores is 0, not NaN


def visibility(
    mask: Bool[Array, "B S"] | Bool[Array, "B T S"] | None, segment_ids: Int[Array, "B S"] | None
) -> tuple[Int[Array, "B S"] | None, Bool[Array, "B T S"] | None]:
    """Which tokens may read which, as the attention bodies take it: ``(texts, pairs)``, each None where not needed.

    Args:
      mask: [B,S] marks real tokens; [B,T,S] says it pair by pair.
      segment_ids: the text each token belongs to, 0 for padding.

    Returns:
      texts: int32 [B,S], the number of each token's text, 0 for padding: a query may read a key of the same text.
      pairs: a mask that came pair by pair, to hold besides.
    """
    pairs = mask if mask is not None and mask.ndim == 3 else None
    tokens = None if pairs is not None else mask
    if segment_ids is None:
        return None if tokens is None else tokens.astype(jnp.int32), pairs
    texts = segment_ids.astype(jnp.int32)
    return texts if tokens is None else jnp.where(tokens, texts, 0), pairs


def visible_pairs(
    texts: Int[Array, "... T"] | None,
    pairs: Bool[Array, "... T S"] | None = None,
    key_texts: Int[Array, "... S"] | None = None,
) -> Bool[Array, "... T S"] | None:
    """True where query t may read key s: both of the same text, and allowed by ``pairs``. None: all may read all.

    Args:
      key_texts: the keys' texts, where they are not those of the queries.
    """
    if texts is None:
        return pairs
    key_texts = texts if key_texts is None else key_texts
    same = (texts[..., :, None] == key_texts[..., None, :]) & (texts != 0)[..., :, None]
    return same if pairs is None else pairs & same


def masked_softmax(scores: Float[Array, "... T S"], pairs: Bool[Array, "... #T #S"] | None) -> Float[Array, "... T S"]:
    """Softmax over the keys in float32. A query that may read nothing gets zeros, as in Microsoft's code."""
    if pairs is None:
        return jax.nn.softmax(scores.astype(F32), axis=-1)
    scores = jnp.where(pairs, scores.astype(F32), MASKED)
    top = lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.where(pairs, jnp.exp(scores - top), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total == 0, 1.0, total)


def text_starts(mask: Bool[Array, "B T"] | None, segment_ids: Int[Array, "B T"] | None, length: int):
    """Index of the first real token of the text that each token belongs to: int32 [B,T], or [1,1] zeros if no mask.

    Unpacked rows hold one text, which starts at its first real token (so left padding changes nothing).
    """
    if segment_ids is not None:
        index = jnp.arange(length, dtype=jnp.int32)[None]
        first = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        return lax.cummax(jnp.where(first, index, 0), axis=1)
    if mask is not None:
        return jnp.argmax(mask, axis=1, keepdims=True).astype(jnp.int32)
    return jnp.zeros((1, 1), jnp.int32)
