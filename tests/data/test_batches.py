"""Which example is in which batch: all once, the same on every call, in programs known beforehand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deberta_jax.data.batches import (
    ExampleOrder,
    TrainingBatches,
    length_buckets,
    pad_batch,
    plan_epoch,
)
from deberta_jax.data.features import Features
from deberta_jax.data.text_batches import padded_length, plan_in_order, shape_size
from deberta_jax.sharding import WHOLE, RowShare

LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=200).map(lambda lengths: np.array(lengths))


def features_of(lengths, labels=None) -> Features:
    """Example i holds the tokens 1000 i + 1, 1000 i + 2, ..., so that any token tells where it is from."""
    lengths = np.asarray(lengths)
    ids = np.concatenate([1000 * i + 1 + np.arange(n) for i, n in enumerate(lengths)]).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Features(ids=ids, types=(ids % 2).astype(np.int8), starts=starts, labels=labels)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 33), st.integers(0, 5))
def test_an_epoch_has_every_example_once_in_batches_that_hold_it(lengths, batch_size, epoch):
    buckets = length_buckets(lengths, 40)
    plan = plan_epoch(lengths, batch_size, buckets, seed=3, epoch=epoch)
    assert sorted(np.concatenate(plan.members)) == list(range(len(lengths)))
    sizes = sorted(len(members) for members in plan.members)
    assert sizes[1:] == [batch_size] * (len(sizes) - 1), "at most one batch is smaller than the others"
    for members, padded in zip(plan.members, plan.padded, strict=True):
        assert padded in buckets
        assert lengths[members].max() <= padded
        assert all(bucket < lengths[members].max() for bucket in buckets if bucket < padded), "a smaller bucket held it"
    again = plan_epoch(lengths, batch_size, buckets, seed=3, epoch=epoch)
    assert again.padded == plan.padded
    assert all(np.array_equal(a, b) for a, b in zip(again.members, plan.members, strict=True))


@settings(deadline=None)
@given(LENGTHS, st.integers(8, 40))
def test_buckets_are_few_and_hold_the_longest(lengths, max_length):
    buckets = length_buckets(lengths, max_length)
    assert 1 <= len(buckets) <= 4
    assert list(buckets) == sorted(set(buckets))
    assert buckets[-1] >= min(lengths.max(), max_length)
    assert all(bucket % 8 == 0 or bucket == max_length for bucket in buckets)


def test_epochs_and_seeds_differ_and_examples_of_like_length_are_together():
    lengths = np.random.default_rng(0).integers(2, 65, 4000)
    buckets = length_buckets(lengths, 64)
    first = [plan_epoch(lengths, 16, buckets, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0))]
    firsts = [np.concatenate(plan.members) for plan in first]
    assert not np.array_equal(firsts[0], firsts[1])
    assert not np.array_equal(firsts[0], firsts[2])
    padding = sum(p * len(m) for m, p in zip(first[0].members, first[0].padded, strict=True)) / lengths.sum()
    unsorted = 64 * len(lengths) / lengths.sum()
    assert padding < 1.3 < 1.8 < unsorted, "sorting by length saves most of the padding"
    # Batches come in no order of length: the model does not see all short texts first.
    padded = np.array(first[0].padded, float)
    assert abs(np.corrcoef(padded, np.arange(len(padded)))[0, 1]) < 0.2


@settings(deadline=None)
@given(LENGTHS, st.sets(st.integers(1, 9), min_size=1))
def test_the_plan_of_an_evaluation_begins_with_the_longest(lengths, sizes):
    plan = plan_in_order(lengths, sorted(sizes), 40)
    assert sorted(np.concatenate([batch.members for batch in plan])) == list(range(len(lengths)))
    assert [batch.length for batch in plan] == sorted((batch.length for batch in plan), reverse=True)
    assert lengths[plan[0].members[0]] == lengths.max()
    for members, rows, length in plan:
        assert rows in sizes
        assert len(members) <= rows
        assert lengths[members].max() <= length


def test_a_long_text_does_not_lengthen_the_rows_of_short_ones_if_they_are_many():
    lengths = np.array([12] * 24 + [500] + [40] * 7)
    shapes = [(batch.rows, batch.length) for batch in plan_in_order(lengths, (1, 4, 16, 32), 512)]
    assert sorted(shapes) == [(1, 512), (4, 16), (4, 16), (4, 48), (4, 48), (16, 16)]
    # A batch of its own for the one text of 20 tokens would cost more than the padding of the others.
    shapes = [(batch.rows, batch.length) for batch in plan_in_order(np.array([12, 12, 20, 12]), (1, 4, 16), 512)]
    assert shapes == [(4, 24)]


@pytest.mark.parametrize(("labels", "nothing"), [(np.array([5, 6, 7], np.int32), -100), (np.arange(3.0), np.nan)])
def test_padding_counts_nowhere(labels, nothing):
    features = features_of([3, 5, 2], labels.astype(np.float32) if labels.dtype == float else labels)
    batch = pad_batch(features, np.array([2, 0]), 4, 6, pad_id=9)
    expected = [[2001, 2002, 9, 9, 9, 9], [1, 2, 3, 9, 9, 9], [9] * 6, [9] * 6]
    assert batch["input_ids"].tolist() == expected
    assert batch["input_ids"].dtype == batch["token_type_ids"].dtype == np.int32
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0] * 6, [0] * 6]
    assert batch["token_type_ids"].tolist() == [[1, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0], [0] * 6, [0] * 6]
    np.testing.assert_array_equal(batch["labels"], [labels[2], labels[0], nothing, nothing])


def batches_of(lengths, batch_size, multiple=1, epochs=2, share=WHOLE, packed=False, **more):
    labels = np.arange(len(lengths), dtype=np.int32)
    buckets = () if packed else length_buckets(np.asarray(lengths), 24)
    order = ExampleOrder(batch_size=batch_size, seed=5, epochs=epochs)
    return TrainingBatches(
        features_of(lengths, labels), order, 0, buckets=buckets, multiple=multiple, share=share, **more
    )


def seen(batch):
    labels = batch["labels"].ravel()
    return sorted(labels[labels >= 0].tolist())


LAYOUTS = pytest.mark.parametrize("packed", [False, True])


@LAYOUTS
def test_a_run_has_every_example_once_an_epoch_whatever_the_rows(packed):
    lengths = np.random.default_rng(1).integers(2, 25, 29)
    for multiple in (1, 12):
        batches = batches_of(lengths, 8, multiple, packed=packed)
        assert len(batches) == 2 * batches.steps_per_epoch == 8
        for epoch in (0, 1):
            steps = [batches[step] for step in range(4 * epoch, 4 * epoch + 4)]
            assert all(len(batch["input_ids"]) % multiple == 0 for batch in steps)
            assert sorted(label for batch in steps for label in seen(batch)) == list(range(29))
        assert seen(batches[0]) != seen(batches[4])
    assert [batches.position(step) for step in range(8)] == [0, 8, 16, 24, 29, 37, 45, 53]


@LAYOUTS
def test_the_order_does_not_depend_on_the_rows_and_shares_join_to_the_whole(packed):
    lengths = np.random.default_rng(1).integers(2, 25, 29)
    whole = batches_of(lengths, 8, 12, packed=packed)
    few = batches_of(lengths, 8, packed=packed)
    shares = [batches_of(lengths, 8, 12, share=RowShare((i,), 3), packed=packed) for i in range(3)]
    for step in range(len(whole)):
        assert seen(whole[step]) == seen(few[step])
        for name, array in whole[step].items():
            np.testing.assert_array_equal(array, np.concatenate([share[step][name] for share in shares]))


@LAYOUTS
def test_examples_have_all_shapes_of_the_run_and_no_others(packed):
    lengths = np.random.default_rng(1).integers(2, 25, 60)
    batches = batches_of(lengths, 4, epochs=3, packed=packed)
    shapes = lambda batch: tuple((name, array.shape, array.dtype) for name, array in sorted(batch.items()))
    announced = [shapes(batch) for batch in batches.examples()]
    assert {shapes(batches[i]) for i in range(len(batches))} <= set(announced)
    assert len(announced) == len(set(announced))
    assert 1 < len(announced) <= 4
    assert all(seen(batch) == [] for batch in batches.examples())
    for step in range(len(batches)):
        size, batch = batches.size(step), batches[step]
        real = batch["segment_ids"] > 0 if packed else batch["attention_mask"]
        assert (size.examples, size.tokens, size.token_slots) == (len(seen(batch)), real.sum(), real.size)


def test_shapes_waste_at_most_a_third_and_are_few():
    sizes = [shape_size(count) for count in range(1, 1025)]
    assert sizes[:13] == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16]
    assert all(size >= count > size * 2 / 3 - 1 for count, size in enumerate(sizes, 1))
    assert len(set(sizes)) == 20
    lengths = {padded_length(length, 512) for length in range(1, 513)}
    assert sorted(lengths) == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert padded_length(40, 45) == 45
