"""Several texts in a row: every one once, whole, where its position says, and few rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deberta_jax.data.features import SPAN, TOKEN, Features
from deberta_jax.data.packing import Packing, choose_packing, pack, packed_batch
from deberta_jax.data.rows import pack_histogram


@settings(deadline=None)
@given(st.lists(st.integers(1, 32), min_size=1, max_size=120).map(np.array), st.integers(1, 9))
def test_rows_hold_what_is_put_into_them_and_are_few(lengths, slots):
    rows, count = pack(lengths, 32, slots)
    assert sorted(set(rows.tolist())) == list(range(count))
    fill = np.bincount(rows, lengths)
    assert fill.max() <= 32
    assert np.bincount(rows).max() <= slots
    # Best fit decreasing is within 11/9 of the best there is, and one row; with slots to spare.
    if slots == 9 and lengths.min() * 9 > 32:
        assert count <= 11 / 9 * -(-int(lengths.sum()) // 32) * 2 + 1


def best_fit(lengths, row_length, slots):
    """The row of each item by the definition: longest first, into the row with least room that holds it."""
    rows, room = [0] * len(lengths), []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = [(left, row) for row, (left, free) in enumerate(room) if left >= lengths[i] and free]
        row = min(fits)[1] if fits else len(room)
        if row == len(room):
            room.append((row_length, slots))
        room[row] = (room[row][0] - lengths[i], room[row][1] - 1)
        rows[i] = row
    return rows, [left for left, _ in room]


@settings(deadline=None)
@given(st.lists(st.integers(1, 24), min_size=1, max_size=90), st.integers(1, 9))
def test_both_packers_are_best_fit(lengths, slots):
    rows, room = best_fit(lengths, 24, slots)
    found, count = pack(np.array(lengths), 24, slots)
    assert (found.tolist(), count) == (rows, len(room))
    # By sizes alone, many texts of one size are placed at once: a row is begun only where no other has room.
    patterns = pack_histogram(np.bincount(lengths), 24)
    left = [24 - sum(pattern.sizes) for pattern in patterns for _ in range(pattern.repeats)]
    assert min(left) >= 0
    assert sum(free >= 12 for free in left) <= 1, "two rows that are half empty would be one"
    sizes = [size for pattern in patterns for _ in range(pattern.repeats) for size in pattern.sizes]
    assert sorted(sizes) == sorted(lengths)


def test_row_counts_hold_every_batch_and_are_multiples():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 65, 500)
    batches = [rng.permutation(500)[:32] for _ in range(40)]
    packing = choose_packing(lengths, batches, row_length=0, multiple=4)
    assert packing.row_length % 8 == 0
    assert packing.row_length >= 96, "three examples of mean length"
    assert all(count % 4 == 0 for count in packing.counts)
    assert len(packing.counts) <= 3
    for members in batches:
        needed = pack(lengths[members], packing.row_length, packing.slots)[1]
        assert packing.rows(needed) >= needed
    assert packing.counts[-1] == max(
        packing.rows(pack(lengths[m], packing.row_length, packing.slots)[1]) for m in batches
    )
    assert choose_packing(lengths, batches, row_length=200, multiple=1).row_length == 200


def ragged(lengths, **more):
    ids = np.concatenate([100 * i + np.arange(n) for i, n in enumerate(lengths)]).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Features(ids=ids, types=(ids % 3 == 0).astype(np.int8), starts=starts, **more)


MEMBERS, ROWS = np.array([3, 0, 2]), np.array([1, 0, 1])
PACKING = Packing(8, 3, (2,))


def packed(features):
    return packed_batch(features, MEMBERS, ROWS, np.arange(2), PACKING, 9)


def test_texts_positions_segments_and_labels_of_examples():
    batch = packed(ragged([3, 9, 2, 4], labels=np.array([10, 11, 12, 13], np.int32)))
    assert batch["input_ids"].tolist() == [[0, 1, 2, 9, 9, 9, 9, 9], [300, 301, 302, 303, 200, 201, 9, 9]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 2, 2, 0, 0]]
    assert batch["positions"].tolist() == [[0, -1, -1], [0, 4, -1]]
    assert batch["labels"].tolist() == [[10, -100, -100], [13, 12, -100]]
    assert batch["token_type_ids"][1].tolist() == [1, 0, 0, 1, 0, 1, 0, 0]
    second = packed_batch(
        ragged([3, 9, 2, 4], labels=np.array([10, 11, 12, 13], np.int32)), MEMBERS, ROWS, np.array([1]), PACKING, 9
    )
    for name, array in second.items():
        np.testing.assert_array_equal(array[0], batch[name][1])


def test_packed_labels_of_every_kind():
    numbers = packed(ragged([3, 9, 2, 4], labels=np.array([0.5, 1, 2, 3], np.float32)))["labels"]
    np.testing.assert_array_equal(numbers, [[0.5, np.nan, np.nan], [3, 2, np.nan]])
    several = packed(ragged([3, 9, 2, 4], labels=np.eye(4, dtype=np.float32)))["labels"]
    assert several.shape == (2, 3, 4)
    np.testing.assert_array_equal(several[1, :2], np.eye(4)[[3, 2]])
    assert np.isnan(several[0, 1:]).all()
    tags = packed(ragged([3, 9, 2, 4], labels=np.arange(18, dtype=np.int32), level=TOKEN))
    assert tags["labels"].tolist() == [[0, 1, 2, *[-100] * 5], [14, 15, 16, 17, 12, 13, -100, -100]]
    assert "positions" not in tags
    answers = np.array([[1, 2], [0, 0], [0, 1], [-1, -1]], np.int32)
    spans = packed(ragged([3, 9, 2, 4], labels=answers, level=SPAN))["labels"]
    assert spans.tolist() == [[[1, 2], [-1, -1], [-1, -1]], [[-1, -1], [4, 5], [-1, -1]]]


def test_choices_stay_side_by_side_and_a_missing_one_has_no_slot():
    features = ragged([2, 1, 3, 0, 1, 2], choices=2, labels=np.array([1, 0, 1], np.int32))
    packing = Packing(8, 2, (1,))
    batch = packed_batch(features, np.array([1, 2]), np.array([0, 0]), np.arange(1), packing, 9)
    assert batch["input_ids"].tolist() == [[200, 201, 202, 400, 500, 501, 9, 9]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 3, 4, 4, 0, 0]]
    assert batch["positions"].tolist() == [[0, -1, 3, 4]]
    assert batch["labels"].tolist() == [[0, 1]]


@pytest.mark.parametrize("slots", [1, 2])
def test_slots_limit_a_row(slots):
    rows, count = pack(np.ones(6, int), 8, slots)
    assert count == 6 // slots
    assert np.bincount(rows).tolist() == [slots] * count
