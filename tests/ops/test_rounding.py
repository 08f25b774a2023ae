"""Rounding at random: the right expectation, the two neighbours alone, the same numbers on every mesh."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from deberta_jax.ops.rounding import round_at_random
from deberta_jax.sharding import make_mesh


def rounded(x, step=0, number=0):
    return np.asarray(jax.jit(round_at_random)(x, (np.uint32(step), np.uint32(number)))).astype(np.float32)


def test_the_mean_is_the_number_and_only_its_neighbours_appear():
    low, high = np.float32(1.0), np.float32(1.0 + 2**-7)
    for fraction in (0.0, 0.1, 0.5, 0.93):
        found = rounded(jnp.full(40_000, low + np.float32(fraction) * (high - low), jnp.float32))
        assert set(np.unique(found)) <= {low, high}
        share = (found == high).mean()
        assert abs(share - fraction) < 5 * np.sqrt(0.25 / 40_000)


def test_numbers_of_bfloat16_and_those_that_are_not_finite_stay():
    exact = np.arange(-300, 300).astype(ml_dtypes.bfloat16).astype(np.float32) * np.float32(2**-20)
    np.testing.assert_array_equal(rounded(jnp.asarray(exact)), exact)
    odd = np.float32([np.inf, -np.inf, np.nan, 0.0, -0.0])
    found = rounded(jnp.asarray(odd))
    np.testing.assert_array_equal(found, odd)
    np.testing.assert_array_equal(np.signbit(found[3:]), [False, True])


def test_steps_and_arrays_are_rounded_independently():
    x = jnp.full(20_000, 1.0 + 2**-8, jnp.float32)
    up = [rounded(x, step, number) > 1.002 for step, number in ((0, 0), (1, 0), (0, 1), (1, 1))]
    correlations = np.corrcoef(np.stack(up))[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(20_000)


def test_the_mesh_changes_nothing():
    x = jax.random.normal(jax.random.key(0), (16, 8))
    mesh = make_mesh(2, 4, 1)
    divided = jax.device_put(x, NamedSharding(mesh, PartitionSpec("fsdp", "data")))
    np.testing.assert_array_equal(rounded(divided, 3, 4), rounded(x, 3, 4))
