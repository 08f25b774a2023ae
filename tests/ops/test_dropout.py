"""Dropout by a hash: its rate, its mixing, and that neighbours, heads, examples and keys have nothing in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.ops.attention.dropout import keep_mask
from deberta_jax.ops.dropout import dropout, dropout_seeds, mix


def test_rate_scale_and_determinism():
    x = jnp.ones((400, 500))
    dropped = dropout(x, 0.25, jax.random.key(1))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    assert float((dropped == 0).mean()) == pytest.approx(0.25, abs=0.005)
    assert (dropped == dropout(x, 0.25, jax.random.key(1))).all()
    assert dropout(x, 0.25, None) is x
    assert dropout(x, 0.0, jax.random.key(1)) is x


def test_mixing_is_murmurs_finaliser():
    """Values of the reference implementation's fmix32."""
    with np.errstate(over="ignore"):
        assert [int(mix(np.uint32(x))) for x in (0, 1, 2)] == [0, 0x514E28B7, 0x30F4C306]


def correlation(a, b):
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_neighbours_heads_examples_and_keys_are_independent():
    """Of n independent pairs a correlation has a standard deviation of n**-0.5; 4.5 of them, for some 60 pairs."""
    keep = keep_mask(np.asarray(dropout_seeds(jax.random.key(0))), 4, 3, 256, 0.3).astype(np.float32)
    other = keep_mask(np.asarray(dropout_seeds(jax.random.key(1))), 4, 3, 256, 0.3).astype(np.float32)
    assert keep.mean() == pytest.approx(0.7, abs=4.5 * (0.21 / keep.size) ** 0.5)
    pairs = [(keep, other), (keep, keep.swapaxes(-1, -2))]
    for shift in (1, 2, 3, 4, 8, 16, 32, 64, 128, 255):
        pairs += [(keep[..., shift:], keep[..., :-shift]), (keep[..., shift:, :], keep[..., :-shift, :])]
    pairs[1] = tuple(np.triu(a, 1)[..., *np.triu_indices(256, 1)] for a in pairs[1])
    by_head = keep.reshape(12, -1)
    pairs += [(by_head[i], by_head[j]) for i in range(12) for j in range(i)]
    for a, b in pairs:
        assert abs(correlation(a, b)) < 4.5 * a.size**-0.5
    assert np.abs(keep.mean((0, 1, 2)) - 0.7).max() < 5 * (0.21 / (4 * 3 * 256)) ** 0.5
    assert np.abs(keep.mean((0, 1, 3)) - 0.7).max() < 5 * (0.21 / (4 * 3 * 256)) ** 0.5


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_correlations_at_any_distance_are_those_of_chance(rate):
    """Over 200 keys the correlation, in standard deviations, has a mean of 0 and a spread of 1."""
    draw = jax.jit(lambda key: dropout(jnp.ones((16, 64, 96)), rate, key) != 0)
    found = []
    for key in jax.random.split(jax.random.key(0), 200):
        a = np.float32(draw(key)).ravel()
        assert a.mean() == pytest.approx(1 - rate, abs=5 * (rate * (1 - rate) / a.size) ** 0.5)
        a = (a - a.mean()) / a.std()
        shifts = (1, 2, 8, 96, 97, 192, 768, 6144, 12288, 49152)
        found.append([np.mean(a[s:] * a[:-s]) * (a.size - s) ** 0.5 for s in shifts])
    assert np.abs(np.mean(found, 0)).max() < 4.5 * 200**-0.5
    assert np.abs(np.std(found, 0) - 1).max() < 4.5 * 400**-0.5
