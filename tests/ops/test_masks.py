"""Masks, softmax and where segments start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.ops.attention.masks import masked_softmax, normalize_masks, pairwise_mask, segment_starts


def combined(mask, segments):
    return pairwise_mask(*normalize_masks(mask, segments))


def test_pairs_need_both_tokens_real_and_of_one_text():
    mask = jnp.array([[1, 1, 0, 1]], bool)
    segments = jnp.array([[1, 1, 2, 2]])
    np.testing.assert_array_equal(combined(mask, None)[0], np.outer(mask[0], mask[0]))
    expected = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]], bool)
    np.testing.assert_array_equal(combined(mask, segments)[0], expected)
    padded = combined(None, jnp.array([[1, 0, 0, 2]]))[0]
    np.testing.assert_array_equal(padded, np.diag([1, 0, 0, 1]).astype(bool))
    assert combined(None, None) is None
    by_pair = jnp.tri(4, dtype=bool)[None]
    np.testing.assert_array_equal(combined(by_pair, None), by_pair)
    np.testing.assert_array_equal(
        combined(by_pair, segments)[0], np.tri(4, dtype=bool) & [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    )


@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
def test_softmax_over_visible_keys_alone(size):
    random = np.random.RandomState(0)
    scores = np.float32(random.standard_normal((3, 4, 5)) * size)
    pairs = random.random_sample((3, 4, 5)) < 0.6
    pairs[0, 1] = False
    weights = np.asarray(masked_softmax(jnp.asarray(scores), jnp.asarray(pairs)))
    assert (weights[~pairs] == 0).all()
    assert (weights[0, 1] == 0).all()
    for b, i in np.ndindex(3, 4):
        if pairs[b, i].any():
            x = np.float64(scores[b, i, pairs[b, i]])
            np.testing.assert_allclose(
                weights[b, i, pairs[b, i]], np.exp(x - x.max()) / np.exp(x - x.max()).sum(), atol=1e-6
            )


def test_softmax_gradient_is_finite_where_nothing_is_visible():
    loss = lambda x: (masked_softmax(x, jnp.zeros((2, 3), bool)) * jnp.arange(3.0)).sum()
    with jax.numpy_rank_promotion("allow"):
        assert (jax.grad(loss)(jnp.ones((2, 3))) == 0).all()


def test_texts_start_at_their_first_real_token():
    mask = jnp.array([[0, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]], bool)
    assert segment_starts(mask, None, 4)[:, 0].tolist() == [2, 0, 0]
    assert segment_starts(None, None, 4).tolist() == [[0]]
    segments = jnp.array([[1, 1, 2, 2, 2, 0], [5, 3, 3, 0, 0, 7]])
    assert segment_starts(None, segments, 6).tolist() == [[0, 0, 2, 2, 2, 5], [0, 1, 1, 3, 3, 5]]
