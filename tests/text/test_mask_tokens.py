"""Masked-LM targets: their number, their places, their units, and what stands in for them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deberta_jax.errors import InputError
from deberta_jax.text import load_tokenizer, train_tokenizer
from deberta_jax.text.mlm_masking import Masking, Vocabulary, begins_word, draws, mask_tokens, span_lengths, spans

SIZE, MASK = 5000, 4999
SPECIAL = np.zeros(SIZE, bool)
SPECIAL[[0, 1, 2, 3, MASK]] = True
# Of three pieces two begin a word.
VOCABULARY = Vocabulary(SPECIAL, np.arange(SIZE) % 3 != 1, np.flatnonzero(~SPECIAL), MASK)
WORDS = Masking(unit="word", longest_span=3)
EVERY = [Masking(), Masking(unit="word"), WORDS, Masking(longest_span=3, shown="mask"), Masking(skip_tail=True)]


def masked(ids, masking, seed=0, first=0, real=None):
    rows = first + np.arange(len(ids))
    real = np.ones(ids.shape, bool) if real is None else real
    return mask_tokens(ids, real, VOCABULARY, masking, seed=seed, rows=rows)


def rows_of(count, length, seed=1):
    """Rows ``[CLS] ... [SEP]`` of tokens that are not special."""
    ids = np.random.default_rng(seed).integers(4, MASK, (count, length)).astype(np.int32)
    ids[:, 0], ids[:, -1] = 1, 2
    return ids


def is_target(positions, length):
    out = np.zeros((len(positions), length), bool)
    row, column = np.nonzero(positions >= 0)
    out[row, positions[row, column]] = True
    return out


def units_of(row, whole_words):
    """The predictable tokens of a row in units, by a loop."""
    units = []
    for place, token in enumerate(row):
        if SPECIAL[token]:
            units.append(None)
        elif whole_words and token % 3 == 1 and units[-1] is not None:
            units[-1].append(place)
        else:
            units.append([place])
    return [unit for unit in units if unit]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(EVERY), st.integers(1, 4), st.integers(8, 40), st.integers(0, 2**32 - 1))
def test_targets_lie_on_predictable_tokens_and_nothing_else_changes(masking, count, length, seed):
    rng = np.random.default_rng(seed)
    ids = rows_of(count, length, seed)
    ids[rng.random(ids.shape) < 0.1] = 3
    real = np.arange(length) < rng.integers(3, length + 1, count)[:, None]
    before = ids.copy()
    seen, positions, labels = masked(ids, masking, seed, real=real)
    np.testing.assert_array_equal(ids, before)
    assert seen.dtype == positions.dtype == labels.dtype == np.int32
    assert positions.shape == labels.shape == (count, masking.targets(length))
    for row in range(count):
        there = positions[row] >= 0
        predictable = real[row] & ~SPECIAL[ids[row]]
        if masking.unit == "token" and masking.longest_span == 1 and not masking.skip_tail and predictable.any():
            assert there.sum() == max(1, round(masking.probability * predictable.sum()))
        assert there.any() or not predictable.any()
        chosen = positions[row][there]
        assert (np.diff(chosen) > 0).all()
        assert predictable[chosen].all()
        np.testing.assert_array_equal(labels[row][there], ids[row, chosen])
        assert (labels[row][~there] == -100).all()
        others = np.setdiff1d(np.arange(length), chosen)
        np.testing.assert_array_equal(seen[row, others], ids[row, others])


@pytest.mark.parametrize("masking", [Masking(), WORDS])
def test_eight_in_ten_become_mask_one_random_one_stays(masking):
    seen, positions, labels = masked(rows_of(1500, 122), masking)
    there = positions >= 0
    shown = np.take_along_axis(seen, np.maximum(positions, 0), axis=1)[there]
    labels = labels[there]
    mask, stays = shown == MASK, shown == labels
    random = ~mask & ~stays
    assert len(shown) > 20_000
    counts = [mask.sum(), random.sum(), stays.sum()]
    assert stats.chisquare(counts, np.array([0.8, 0.1, 0.1]) * len(shown)).pvalue > 1e-4
    assert not SPECIAL[shown[random]].any(), "a random token is no special one"
    assert stats.chisquare(np.histogram(shown[random], bins=10, range=(4, MASK))[0]).pvalue > 1e-4


def test_all_targets_become_mask_if_asked():
    seen, positions, _ = masked(rows_of(50, 102), Masking(shown="mask"))
    assert (seen[is_target(positions, 102)] == MASK).all()
    assert (seen == MASK).sum() == 50 * 15


@pytest.mark.parametrize("masking", [m for m in EVERY if not m.skip_tail])
def test_every_position_is_masked_equally_often_and_replaced_alike(masking):
    count, length = 6000, 66
    seen, positions, _ = masked(rows_of(count, length), masking)
    targets = is_target(positions, length)
    assert not targets[:, [0, -1]].any()
    often = targets.sum(axis=0)[1:-1]
    # Neighbours in one group are chosen together, which widens the counts: by the mean size of a token's group at most.
    widened = {"token": 1.0, "word": 2.0}[masking.unit] * {1: 1.0, 3: 2.0}[masking.longest_span]
    assert ((often - often.mean()) ** 2).sum() / often.mean() / widened < stats.chi2.isf(1e-4, len(often) - 1)
    assert abs(often[-8:].mean() / often.mean() - 1) < 0.03, "the tail"
    if masking.shown == "80-10-10":
        to_mask = (targets & (seen == MASK)).sum(axis=0)[1:-1]
        assert stats.chi2_contingency(np.stack([to_mask, often - to_mask])).pvalue > 1e-4


def test_the_share_of_targets():
    _, positions, _ = masked(rows_of(400, 402), Masking())
    assert ((positions >= 0).sum(axis=1) == 60).all()
    assert Masking().targets(402) == 60
    for masking in (Masking(unit="word"), WORDS, Masking(longest_span=3)):
        _, positions, _ = masked(rows_of(400, 402), masking)
        each = (positions >= 0).sum(axis=1)
        assert each.mean() == pytest.approx(60, rel=0.005)
        assert each.max() <= masking.targets(402) <= 72
        assert each.std() < 4


def test_only_skip_tail_leaves_out_the_end_of_a_row():
    length = 512
    _, positions, _ = masked(rows_of(1500, length), Masking(longest_span=3, skip_tail=True))
    original = is_target(positions, length).mean(axis=0)[1:-1]
    _, positions, _ = masked(rows_of(1500, length), Masking(longest_span=3))
    ours = is_target(positions, length).mean(axis=0)[1:-1]
    assert original[:400].mean() == pytest.approx(1 / 6, rel=0.03), "6 n units, one span of n"
    assert original[-26:].mean() < 0.25 * original[:400].mean()
    assert ours[-26:].mean() == pytest.approx(ours.mean(), rel=0.05)


def test_the_original_generator_is_what_a_loop_over_its_units_gives():
    masking = Masking(unit="word", longest_span=3, skip_tail=True)
    ids = rows_of(40, 120)
    random = draws(5, np.arange(40), 2 * 120 + 1 + 2 * masking.targets(120))
    _, positions, _ = masked(ids, masking, seed=5)
    for row in range(40):
        units = units_of(ids[row], True)
        chosen, offset, step = set(), 0, 0
        while offset < len(units):
            size = 1 + int(np.sum(random[row, step] >= np.array([6 / 11, 9 / 11])))
            context = min(size * 6, len(units) - offset)
            start = offset + int(random[row, 120 + step] * context)
            end = min(start + size, len(units))
            chosen |= set(range(start, end))
            offset, step = max(offset + context, end), step + 1
        expected: list[int] = []
        for number in sorted(chosen):
            expected += units[number]
            if len(expected) >= 18:
                break
        assert positions[row][positions[row] >= 0].tolist() == expected[:18]


def test_span_lengths_have_weights_one_over_n():
    weights = np.array([6, 3, 2]) / 11
    found = span_lengths(np.random.default_rng(0).random(30_000), 3)
    assert stats.chisquare(np.bincount(found)[1:], weights * 30_000).pvalue > 1e-4
    # And those that are chosen have them too: their units, counted by the groups that the tokens are in.
    ids = rows_of(700, 512)
    random = draws(3, np.arange(700), 2 * 512 + 1 + 2 * WORDS.targets(512))
    predictable = ~SPECIAL[ids]
    units = predictable & ((ids % 3 != 1) | (np.arange(512) == 1))
    groups = spans(units, predictable, 3, random[:, :512])
    _, positions, _ = masked(ids, WORDS, seed=3)
    targets = is_target(positions, 512)
    of_group = (groups + 512 * np.arange(700)[:, None])[targets & units]
    lengths = np.bincount(np.bincount(of_group)[np.unique(of_group)])[1:]
    assert lengths.sum() > 14_000
    assert len(lengths) == 3
    assert stats.chisquare(lengths, weights * lengths.sum()).pvalue > 1e-4


@pytest.mark.parametrize("longest", [1, 3])
def test_words_are_masked_whole_and_never_over_a_border(longest):
    ids = rows_of(300, 90)
    ids[:, 40], ids[:, 41] = 2, 1
    _, positions, _ = masked(ids, Masking(unit="word", longest_span=longest))
    targets = is_target(positions, 90)
    for row in range(300):
        for unit in units_of(ids[row], True):
            assert len(set(targets[row, unit])) == 1
    predictable = ~SPECIAL[ids]
    units = predictable & ((ids % 3 != 1) | (np.arange(90) == 42))
    groups = spans(units, predictable, 3, draws(0, np.arange(300), 90))
    assert (groups[:, 39] < groups[:, 42]).all()


def test_masks_follow_from_the_seed_and_the_row_s_number_alone():
    ids = rows_of(12, 50)
    whole = masked(ids, WORDS, seed=7, first=100)
    for rows in (np.array([3]), np.array([4, 5, 9, 10, 11])):
        part = mask_tokens(ids[rows], np.ones((len(rows), 50), bool), VOCABULARY, WORDS, seed=7, rows=100 + rows)
        for a, b in zip(part, whole, strict=True):
            np.testing.assert_array_equal(a, b[rows])
    assert not np.array_equal(masked(ids, WORDS, seed=8, first=100)[1], whole[1])
    assert not np.array_equal(masked(ids, WORDS, seed=7, first=112)[1], whole[1])


def test_draws_are_uniform_and_independent_of_each_other():
    found = draws(1, np.arange(400), 50)
    assert stats.kstest(found.reshape(-1), "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(found[:-1].reshape(-1), found[1:].reshape(-1))[0, 1]) < 0.03
    assert len(np.unique(found)) == found.size
    assert not np.intersect1d(found, draws(1, np.arange(400), 50, stream=1)).size


def test_bad_options_are_refused():
    for masking in (
        Masking(probability=0.0),
        Masking(probability=1.0),
        Masking(probability=float("nan")),
        Masking(longest_span=0),
    ):
        with pytest.raises(InputError, match="--"):
            masking.check()


def test_word_starts_of_a_sentencepiece_vocabulary(tmp_path):
    lines = [f"the house, number {i}, has a (small) roof; 屋根 don't {i}!" for i in range(400)]
    train_tokenizer(lines, 400, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    starts = begins_word(tokenizer)
    text = "the house, (small) don't 屋根"
    ids = tokenizer.encode_flat([text])[0]
    words, pieces = [], [tokenizer.id_to_token(int(i)) for i in ids]
    for piece, start in zip(pieces, starts[ids], strict=True):
        words = [*words, piece] if start else [*words[:-1], words[-1] + piece]
    joined = [word.strip("▁") for word in words if word.strip("▁")]
    # A piece of Chinese may be a word by itself; marks are; what follows a mark goes on with it.
    assert joined[:3] == ["the", "house", ","]
    assert "".join(joined) == text.replace(" ", "")
    assert starts[list(tokenizer.all_special_ids)].all()
