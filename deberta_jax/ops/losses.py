"""Implements every loss as a pure function of logits and labels: ``(per_item, weight)``, float32 arrays of one shape.

An ignored item has weight 0 and value 0, so that sums of ``weight * per_item`` and of ``weight`` may be added over
micro-batches, devices and processes before ``weighted_mean`` divides once. Values are those of transformers wherever it
computes one. Labels that mean "ignore" are negative integers (any, not only -100), NaN for floats. A class label beyond
the last class gives NaN, never another class's loss.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Num

F32 = jnp.float32
Items = tuple[Float[Array, "..."], Float[Array, "..."]]


def weighted_mean(per_item: Float[Array, "..."], weight: Float[Array, "..."]) -> Float[Array, ""]:
    """Returns ``sum(weight * per_item) / max(sum(weight), 1)``, float32 []: 0, not NaN, where every item is ignored."""
    return jnp.sum(weight * per_item) / jnp.maximum(jnp.sum(weight), 1.0)


def cross_entropy(logits: Float[Array, "... C"], labels: Int[Array, "..."]) -> Items:
    """Returns the cross-entropy of integer classes; every negative label is ignored.

    Args:
      logits: [..., C].
      labels: [...]; also [..., 1].

    Raises:
      ValueError: labels of another shape.
    """
    labels = _match(labels, logits.shape[:-1])
    counts = labels >= 0
    # optax takes the label's logit with a gather that fills NaN beyond the last class.
    value = optax.softmax_cross_entropy_with_integer_labels(logits.astype(F32), jnp.where(counts, labels, 0))
    return _ignore(value, counts)


def soft_cross_entropy(logits: Float[Array, "... C"], targets: Num[Array, "... C"]) -> Items:
    """Returns ``-sum_c target_c log softmax(logits)_c``; a row with a negative or NaN target is ignored.

    Args:
      logits, targets: [..., C]; targets need not sum to 1.

    Raises:
      ValueError: targets of another shape.
    """
    targets = _match(targets, logits.shape).astype(F32)
    counts = (targets >= 0).all(axis=-1)
    targets = jnp.where(counts[..., None], targets, 0.0)
    return _ignore(optax.softmax_cross_entropy(logits.astype(F32), targets), counts)


def mean_squared_error(logits: Float[Array, "..."], labels: Num[Array, "..."]) -> Items:
    """Returns squared differences; a NaN label is ignored. An item is a label, so rows of C targets are C items.

    Args:
      logits: [B, 1] or [B]; or [B, C] for C targets. Further leading axes may stand before B.
      labels: of the logits' shape, give or take a last axis of 1; integers count as floats.

    Raises:
      ValueError: labels of another shape.
    """
    if logits.ndim == labels.ndim + 1 and logits.shape[-1] == 1:
        logits = logits[..., 0]
    labels = _match(labels, logits.shape).astype(F32)
    counts = ~jnp.isnan(labels)
    return _ignore(optax.squared_error(logits.astype(F32), jnp.where(counts, labels, 0.0)), counts)


def binary_cross_entropy(logits: Float[Array, "... C"], labels: Num[Array, "... C"]) -> Items:
    """Returns the mean cross-entropy of C independent yes-or-no labels; a row with a negative or NaN entry is ignored.

    Args:
      logits: [..., C].
      labels: [..., C], 0 to 1.

    Returns:
      Values and weights [...]: an item is a row.

    Raises:
      ValueError: labels of another shape.
    """
    labels = _match(labels, logits.shape).astype(F32)
    counts = (labels >= 0).all(axis=-1)
    labels = jnp.where(counts[..., None], labels, 0.0)
    return _ignore(optax.sigmoid_binary_cross_entropy(logits.astype(F32), labels).mean(axis=-1), counts)


def span_loss(
    start_logits: Float[Array, "B T"],
    end_logits: Float[Array, "B T"],
    starts: Int[Array, "..."],
    ends: Int[Array, "..."],
    mask: Bool[Array, "B T"] | None = None,
) -> Items:
    """Returns half the cross-entropy of an answer's first token plus half that of its last token.

    A position outside the text, on either side, is ignored. transformers ignores positions beyond the end and treats
    negative ones as position 0; ``jnp.maximum(starts, 0)`` gives that. An answer with one position outside counts half.

    Args:
      starts, ends: [B]; also [B, 1].
      mask: True where an answer may begin or end; other logits are left out. Without a mask all logits count, also
        those of padding, as in transformers, and the loss depends on the amount of padding.

    Raises:
      ValueError: positions of another shape.
    """
    if mask is not None:
        start_logits, end_logits = (jnp.where(mask, a.astype(F32), -1e30) for a in (start_logits, end_logits))
    first, first_weight = _position_loss(start_logits, starts)
    last, last_weight = _position_loss(end_logits, ends)
    weight = (first_weight + last_weight) / 2
    value = (first * first_weight + last * last_weight) / 2
    return value / jnp.where(weight > 0, weight, 1.0), weight


def replaced_token_loss(logits: Float[Array, "B T"], labels: Int[Array, "B T"]) -> Items:
    """Returns the binary cross-entropy of "this token was replaced"; labels 1, 0, negative for padding."""
    counts = labels >= 0
    value = optax.sigmoid_binary_cross_entropy(logits.astype(F32), jnp.where(counts, labels, 0).astype(F32))
    return _ignore(value, counts)


def _position_loss(logits: Float[Array, "B T"], positions: Int[Array, "..."]) -> Items:
    return cross_entropy(logits, jnp.where(positions < logits.shape[-1], positions, -1))


def _ignore(value: Float[Array, "..."], counts: jax.Array) -> Items:
    # where, not a product: 0 times a loss of inf or NaN is NaN.
    return jnp.where(counts, value, 0.0), counts.astype(F32)


def _match(labels: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if labels.shape == (*shape, 1):
        labels = labels[..., 0]
    if labels.shape != shape:
        raise ValueError(f"labels have shape {labels.shape}; these logits need {shape}")
    return labels
