"""The blocked implementation where a text has far keys, and its memory."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.ops.attention import disentangled_attention
from deberta_jax.ops.attention.cpu.block_geometry import BlockGeometry, BlockSizes, divide
from deberta_jax.ops.attention.relative_position import make_relative_index
from tests.attention_cases import SCALE, attend, by_hand, gradients_of, make_inputs, outputs_of, relative_error

FAR_SIZES = BlockSizes(max_queries=64, tile=32)


def far_inputs(**absent):
    """Returns inputs and index of a padded text in six blocks of two tiles; inner ones have far keys on both sides."""
    length = 359
    relative_index = make_relative_index(length, 16, buckets=-1, max_distance=16, clamp=True)
    assert divide(length, relative_index, FAR_SIZES) == BlockGeometry(length=360, block_size=60, near=120, tile=30)
    return make_inputs(span=16, length=length) | absent, relative_index


def test_long_texts_meet_far_keys_by_row_alone():
    """The blocked implementation against float64 pair by pair."""
    arrays, relative_index = far_inputs()
    found, _ = attend(arrays, relative_index, implementation="blocked", sizes=FAR_SIZES)
    np.testing.assert_allclose(found, by_hand(arrays, relative_index)[0], atol=5e-6)


def far_masks(length: int) -> dict[str, Any]:
    segments = np.arange(length) // 120
    return {
        "mask": np.random.RandomState(5).random_sample((2, length, length)) < 0.9,
        "segment_ids": np.stack([np.minimum(segments, 1) + 1, np.where(segments < 2, 1, 0)]).astype(np.int32),
        "dropout_rate": 0.3,
        "dropout_key": jax.random.key(8),
    }


ONE, BOTH = 1, 1 << 19  # scores held at once: examples one by one, or both together


@pytest.mark.slow
@pytest.mark.parametrize(
    ("absent", "masked", "scores"),
    [
        ((), True, ONE),
        ((), False, BOTH),
        (("pos_key",), True, BOTH),
        (("pos_query",), True, ONE),
        (("pos_key", "pos_query"), True, BOTH),
    ],
    ids=str,
)
def test_far_keys_under_masks_and_dropout(absent, masked, scores):
    """Output and gradients are the definition's where texts are packed, some pairs barred and some weights dropped."""
    sizes = dataclasses.replace(FAR_SIZES, scores=scores)
    arrays, relative_index = far_inputs(**dict.fromkeys(absent))
    length = arrays["query"].shape[1]
    given = far_masks(length) if masked else {}
    given["sizes"] = sizes
    cotangents = np.float32(np.random.RandomState(6).standard_normal(arrays["query"].shape)), np.float32(0)
    expected, found = (
        outputs_of(implementation, arrays, relative_index, cotangents, **given)
        for implementation in ("reference", "blocked")
    )
    for name, value in found.items():
        assert (value is None) == (name in absent)
        limit = 2e-6 if name == "context" else 2e-5
        assert value is None or relative_error(value, np.float64(expected[name])) < limit, name


@pytest.mark.parametrize(("dtype", "scores"), [(jnp.bfloat16, ONE), (jnp.float16, BOTH)])
def test_far_keys_in_half_precision_are_as_exact_as_the_definition(dtype, scores):
    """The output to 1.3 times the definition's error in the same dtype; gradients to its rounding."""
    sizes = dataclasses.replace(FAR_SIZES, scores=scores)
    arrays, relative_index = far_inputs()
    half = {name: jnp.asarray(a, dtype) for name, a in arrays.items()}
    exactly = {name: np.float32(a) for name, a in half.items()}
    exact, _ = by_hand(exactly, relative_index)
    cotangents = np.float32(np.random.RandomState(6).standard_normal(exact.shape)), np.float32(0)
    gradients = gradients_of("reference", exactly, relative_index, cotangents)
    by_definition, _ = jax.jit(lambda a: attend(a, relative_index, implementation="reference"))(half)
    found = outputs_of("blocked", half, relative_index, cotangents, sizes=sizes)
    assert relative_error(found.pop("context"), exact) < 1.3 * relative_error(by_definition, exact)
    for name, gradient in found.items():
        assert relative_error(gradient, np.float64(gradients[name])) < 8 * jnp.finfo(dtype).eps, name


def temporary_bytes(length: int) -> int:
    """Of forward and backward of the blocked implementation, by the compiler."""
    relative_index = make_relative_index(length, 256, buckets=256, max_distance=512, clamp=True)
    like = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    arrays = [like(2, length, 12, 64)] * 3 + [like(512, 12, 64)] * 2
    loss = lambda *a: disentangled_attention(*a, relative_index, scale=SCALE, implementation="blocked")[0].sum()
    lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4))).lower(*arrays)
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_temporary_memory_of_the_blocked_implementation_is_linear_in_length():
    sizes = [temporary_bytes(length) for length in (512, 1024, 2048, 4096)]
    growth = [after / before for before, after in itertools.pairwise(sizes)]
    assert max(growth) <= 2.2, growth
