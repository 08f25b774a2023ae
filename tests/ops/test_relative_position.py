"""The distance table against the closed form, value by value and for random sizes."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deberta_jax.ops.attention.relative_position import compact_relative_index, log_bucket, make_relative_index

# Buckets of the released v2/v3 models (256 a side, 512 positions), from the published code.
_RELEASED = {
    127: 127,
    128: 128,
    129: 129,
    130: 130,
    131: 131,
    132: 131,
    135: 133,
    150: 143,
    200: 169,
    256: 192,
    300: 207,
    400: 233,
    500: 254,
    505: 254,
    506: 255,
    510: 255,
    511: 255,
    512: 256,
    520: 257,
    600: 270,
    1000: 317,
}


def closed_form(distance: int, buckets: int, max_distance: int) -> int:
    """The definition with one scalar logarithm at a time; exact where its argument is exactly an integer."""
    half, size = buckets // 2, abs(distance)
    if size <= half:
        return distance
    if size == max_distance - 1:  # the two logarithms are one
        bucket = half + (half - 1)
    else:
        bucket = half + math.ceil(
            math.log(Fraction(size, half)) / math.log(Fraction(max_distance - 1, half)) * (half - 1)
        )
    return int(math.copysign(bucket, distance))


sizes = st.integers(2, 512).flatmap(lambda b: st.tuples(st.just(b), st.integers(b // 2 + 2, 4096)))


@pytest.mark.parametrize(("distance", "bucket"), _RELEASED.items())
def test_released_buckets(distance, bucket):
    assert log_bucket(np.array(distance), 256, 512) == bucket
    assert log_bucket(np.array(-distance), 256, 512) == -bucket


@settings(deadline=None, max_examples=200)
@given(sizes, st.integers(0, 6000))
def test_bucket_is_the_closed_form(size, distance):
    buckets, max_distance = size
    assert log_bucket(np.array(distance), buckets, max_distance) == closed_form(distance, buckets, max_distance)


@settings(deadline=None, max_examples=100)
@given(sizes, st.integers(1, 2000))
def test_buckets_are_odd_monotone_and_linear_at_first(size, length):
    buckets, max_distance = size
    distance = np.arange(-length, length + 1)
    bucket = log_bucket(distance, buckets, max_distance)
    assert (bucket == -bucket[::-1]).all()
    assert (np.diff(bucket) >= 0).all()
    near = np.abs(distance) <= buckets // 2
    assert (bucket[near] == distance[near]).all()


@settings(deadline=None, max_examples=100)
@given(sizes, st.integers(1, 1500), st.booleans())
def test_index_is_the_clipped_bucket_of_every_distance(size, length, clamp):
    buckets, max_distance = size
    relative_index = make_relative_index(length, buckets, buckets=buckets, max_distance=max_distance, clamp=clamp)
    assert relative_index.shape == (2 * length - 1,)
    assert relative_index.dtype == np.int32
    for distance in {-(length - 1), -(length // 2), 0, length // 3, length - 1}:
        near = max(1 - max_distance, min(max_distance - 1, distance)) if clamp else distance
        expected = closed_form(near, buckets, max_distance) + buckets
        assert relative_index[distance + length - 1] == max(0, min(2 * buckets - 1, expected))


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 600), st.integers(1, 1500))
def test_index_without_buckets_is_the_clipped_distance(span, length):
    relative_index = make_relative_index(length, span, buckets=-1, max_distance=span, clamp=False)
    expected = [max(0, min(2 * span - 1, d + span)) for d in range(-(length - 1), length)]
    assert relative_index.tolist() == expected


@settings(deadline=None, max_examples=50)
@given(sizes, st.integers(1, 1000))
def test_compact_index_names_the_same_rows(size, length):
    buckets, max_distance = size
    relative_index = make_relative_index(length, buckets, buckets=buckets, max_distance=max_distance, clamp=True)
    rows, compact = compact_relative_index(relative_index)
    assert (rows[compact] == relative_index).all()
    assert (np.diff(rows) > 0).all()
    assert set(rows) == set(relative_index)


def test_relative_index_beyond_the_trained_range():
    """The original training code clamps first and never reads row 0; transformers reads it from -512 on."""
    released = {"buckets": 256, "max_distance": 512}
    clamped = make_relative_index(1500, 256, clamp=True, **released)
    assert clamped.min() == 1
    assert (clamped[: 1500 - 511] == 1).all()
    hf = make_relative_index(1500, 256, clamp=False, **released)
    assert (hf[: 1500 - 512] == 0).all()
    assert hf[1499 - 511] == 1
    assert (hf[1499 - 511 :] == clamped[1499 - 511 :]).all()
    same = (make_relative_index(512, 256, clamp=clamp, **released) for clamp in (True, False))
    assert len({index.tobytes() for index in same}) == 1


@pytest.mark.parametrize(
    ("buckets", "span"),
    [(32, 128), (64, 256), (128, 512), (256, 512), (256, 1024), (256, 2048), (512, 1024), (4, 16), (8, 32)],
)
def test_the_last_distance_stays_in_its_bucket(buckets, span):
    """At distance span - 1 the two logarithms are equal and their ratio must be exactly 1, or ceil jumps a bucket."""
    assert log_bucket(np.array([span - 1]), buckets, span) == [2 * (buckets // 2) - 1]
    # float32, as transformers evaluates it, agrees at every distance it is asked for.
    half, distance = buckets // 2, np.arange(buckets // 2 + 1, 1100)
    ratio = np.log(np.float32(distance) / np.float32(half)) / np.float32(np.log(np.float32((span - 1) / half)))
    keep = distance != span - 1
    assert (log_bucket(distance, buckets, span) == half + np.ceil(ratio * (half - 1)))[keep].all()


def test_the_relative_index_does_not_depend_on_the_length_of_the_text():
    """Longer texts add distances at both ends and change no other row."""
    short, long = (make_relative_index(t, 256, buckets=256, max_distance=512, clamp=True) for t in (40, 400))
    assert (long[360:-360] == short).all()
