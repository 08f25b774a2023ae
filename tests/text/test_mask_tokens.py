"""Masked-LM targets: their number, their places, and what stands in for them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deberta_jax.text.masking import mask_tokens

MASK, RANDOM = 5000, (100, 4000)


def masked(ids, predictable, count, seed=0):
    return mask_tokens(ids, predictable, np.random.default_rng(seed), count=count, mask_id=MASK, random_ids=RANDOM)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 14), st.integers(0, 2**32 - 1))
def test_targets_lie_on_predictable_tokens_and_nothing_else_changes(rows, length, count, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(4500, 4900, (rows, length)).astype(np.int32)
    predictable = rng.random((rows, length)) < 0.6
    before = ids.copy()
    seen, positions, labels = masked(ids, predictable, count, seed)
    np.testing.assert_array_equal(ids, before)
    assert seen.dtype == positions.dtype == labels.dtype == np.int32
    for row in range(rows):
        real = positions[row] >= 0
        assert real.sum() == min(count, predictable[row].sum())
        chosen = positions[row][real]
        assert (np.diff(chosen) > 0).all()
        assert predictable[row, chosen].all()
        np.testing.assert_array_equal(labels[row][real], ids[row, chosen])
        assert (labels[row][~real] == -100).all()
        others = np.setdiff1d(np.arange(length), chosen)
        np.testing.assert_array_equal(seen[row, others], ids[row, others])


def test_eight_in_ten_become_mask_one_random_one_stays():
    ids = np.random.default_rng(1).integers(4500, 4900, (4000, 20)).astype(np.int32)
    seen, positions, labels = masked(ids, np.ones(ids.shape, bool), 5)
    shown = np.take_along_axis(seen, positions, axis=1)
    mask, stays = shown == MASK, shown == labels
    random = ~mask & ~stays
    assert stats.chisquare([mask.sum(), random.sum(), stays.sum()], np.array([0.8, 0.1, 0.1]) * 20000).pvalue > 1e-4
    assert shown[random].min() >= RANDOM[0]
    assert shown[random].max() < RANDOM[1]
    spread = np.histogram(shown[random], bins=10, range=RANDOM)[0]
    assert stats.chisquare(spread).pvalue > 1e-4


def test_trap_39_what_becomes_of_a_target_does_not_depend_on_its_place():
    ids = np.random.default_rng(1).integers(4500, 4900, (6000, 12)).astype(np.int32)
    seen, positions, _ = masked(ids, np.ones(ids.shape, bool), 4)
    chosen = np.bincount(positions.reshape(-1), minlength=12)
    assert stats.chisquare(chosen).pvalue > 1e-4
    row, column = np.nonzero(seen == MASK)
    table = np.stack([np.bincount(column, minlength=12), chosen - np.bincount(column, minlength=12)])
    assert stats.chi2_contingency(table).pvalue > 1e-4
    assert len(row) > 10000
