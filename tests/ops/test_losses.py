"""Losses against their formulas in numpy float64; transformers' own values are in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.ops import losses
from deberta_jax.ops.losses import weighted_mean

RANDOM = np.random.RandomState(0)
LOGITS = jnp.float32(RANDOM.standard_normal((5, 4)))
LABELS = jnp.array([0, 3, -1, -100, 2])


def log_softmax(logits):
    logits = np.float64(logits)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_cross_entropy_ignores_every_negative_label():
    value, weight = losses.cross_entropy(LOGITS, LABELS)
    np.testing.assert_array_equal(weight, [1, 1, 0, 0, 1])
    expected = [-log_softmax(LOGITS)[i, label] if label >= 0 else 0 for i, label in enumerate(LABELS)]
    np.testing.assert_allclose(value, expected, atol=1e-6)
    assert value.dtype == weight.dtype == jnp.float32


def test_weighted_mean_of_nothing_is_zero_with_zero_gradient():
    loss = lambda logits: weighted_mean(*losses.cross_entropy(logits, jnp.full(5, -100)))
    value, gradient = jax.value_and_grad(loss)(LOGITS)
    assert value == 0
    assert (gradient == 0).all()


def test_sums_over_parts_give_the_mean_of_the_whole():
    whole = weighted_mean(*losses.cross_entropy(LOGITS, LABELS))
    parts = [losses.cross_entropy(LOGITS[i : i + 2], LABELS[i : i + 2]) for i in (0, 2, 4)]
    total = sum((v * w).sum() for v, w in parts) / sum(w.sum() for _, w in parts)
    assert total == pytest.approx(float(whole), rel=1e-6)


def test_a_label_beyond_the_classes_is_nan_not_a_neighbour():
    value, _ = losses.cross_entropy(LOGITS, jnp.array([4, 0, 0, 0, 0]))
    assert np.isnan(value[0])
    assert np.isfinite(value[1:]).all()


def test_soft_targets():
    targets = RANDOM.random_sample((5, 4))
    targets[2] = -1
    value, weight = losses.soft_cross_entropy(LOGITS, jnp.float32(targets))
    np.testing.assert_array_equal(weight, [1, 1, 0, 1, 1])
    expected = np.where(weight, -(targets * log_softmax(LOGITS)).sum(-1), 0)
    np.testing.assert_allclose(value, expected, atol=1e-5)


def test_squared_error_and_its_ignored_label():
    labels = jnp.array([1.0, np.nan, 2, 3, 4])
    loss = lambda logits: weighted_mean(*losses.mean_squared_error(logits, labels))
    value, gradient = jax.value_and_grad(loss)(LOGITS[:, :1])
    kept = np.array([0, 2, 3, 4])
    assert value == pytest.approx(float(np.mean((LOGITS[kept, 0] - labels[kept]) ** 2)))
    assert np.isfinite(gradient).all()
    assert gradient[1] == 0
    assert loss(LOGITS[:, 0]) == value
    assert weighted_mean(*losses.mean_squared_error(LOGITS[:, :1], labels[:, None])) == value
    integers = weighted_mean(*losses.mean_squared_error(LOGITS[:, 0], jnp.arange(5)))
    assert integers == pytest.approx(float(np.mean((LOGITS[:, 0] - np.arange(5)) ** 2)))


def test_binary_cross_entropy_counts_rows():
    labels = (RANDOM.random_sample((5, 4)) > 0.5).astype(np.int32)
    labels[3, 1] = -100
    value, weight = losses.binary_cross_entropy(LOGITS, jnp.asarray(labels))
    np.testing.assert_array_equal(weight, [1, 1, 1, 0, 1])
    p = 1 / (1 + np.exp(-np.float64(LOGITS)))
    expected = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean(-1)
    np.testing.assert_allclose(value, np.where(weight, expected, 0), atol=1e-6)


def test_replaced_token_loss():
    labels = jnp.array([[1, 0, -100, 1], [0, 0, 1, -1]])
    value, weight = losses.replaced_token_loss(LOGITS[:2], labels)
    np.testing.assert_array_equal(weight, labels >= 0)
    p = 1 / (1 + np.exp(-np.float64(LOGITS[:2])))
    expected = np.where(labels == 1, -np.log(p), -np.log(1 - p))
    np.testing.assert_allclose(value, np.where(labels >= 0, expected, 0), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_labels_of_any_integer_dtype(dtype):
    """Microsoft's replaced-token loss takes int32 alone."""
    labels = np.array([[1, 0, 1, 1], [0, 0, 1, 0]])
    expected = losses.replaced_token_loss(LOGITS[:2], jnp.asarray(labels, jnp.int32))
    np.testing.assert_array_equal(losses.replaced_token_loss(LOGITS[:2], jnp.asarray(labels.astype(dtype))), expected)
    classes = jnp.asarray(np.array([0, 3, 1, 1, 2]).astype(dtype))
    np.testing.assert_array_equal(
        losses.cross_entropy(LOGITS, classes), losses.cross_entropy(LOGITS, classes.astype(int))
    )


def test_labels_with_an_axis_too_many_are_squeezed():
    np.testing.assert_array_equal(losses.cross_entropy(LOGITS, LABELS[:, None]), losses.cross_entropy(LOGITS, LABELS))
    with pytest.raises(ValueError, match=r"labels have shape \(4,\); these logits need \(5,\)"):
        losses.cross_entropy(LOGITS, LABELS[:4])
    with pytest.raises(ValueError, match="labels have shape"):
        losses.mean_squared_error(LOGITS, LABELS.astype(np.float32))


def test_answer_positions_outside_a_text_are_ignored_on_both_sides():
    starts, ends = jnp.array([0, -1, 4, 3, 2]), jnp.array([1, -1, 9, 9, 3])
    value, weight = losses.span_loss(LOGITS, LOGITS[::-1], starts, ends)
    np.testing.assert_array_equal(weight, [1, 0, 0, 0.5, 1])
    first, last = -log_softmax(LOGITS), -log_softmax(LOGITS[::-1])
    expected = [(first[0, 0] + last[0, 1]) / 2, 0, 0, first[3, 3], (first[4, 2] + last[4, 3]) / 2]
    np.testing.assert_allclose(value, expected, atol=1e-6)


def test_span_loss_with_a_mask_does_not_see_padding():
    mask = jnp.arange(4)[None] < jnp.array([4, 4, 2, 4, 3])[:, None]
    starts, ends = jnp.array([0, 1, 0, 3, 2]), jnp.array([1, 2, 1, 3, 2])
    value, _ = losses.span_loss(LOGITS, LOGITS, starts, ends, mask)
    alone, _ = losses.span_loss(LOGITS[2:3, :2], LOGITS[2:3, :2], starts[2:3], ends[2:3])
    assert value[2] == pytest.approx(float(alone[0]), abs=1e-6)
    other, _ = losses.span_loss(jnp.where(mask, LOGITS, 50), LOGITS, starts, ends, mask)
    np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_losses_are_float32_whatever_the_logits(dtype):
    logits = LOGITS.astype(dtype)
    exact = weighted_mean(*losses.cross_entropy(logits.astype(jnp.float32), LABELS))
    assert weighted_mean(*losses.cross_entropy(logits, LABELS)) == exact
