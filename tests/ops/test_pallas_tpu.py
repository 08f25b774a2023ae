"""The TPU kernel in Pallas' interpreter against the definition in reference.py; no TPU is needed or was used."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from deberta_jax.errors import InputError
from deberta_jax.ops.attention.dropout import keep_mask
from deberta_jax.ops.attention.inputs import AttentionInputs
from deberta_jax.ops.attention.masks import pairwise_mask
from deberta_jax.ops.attention.pallas.kernel_attention import pallas_attention
from deberta_jax.ops.attention.pallas.self_check import kernel_agrees
from deberta_jax.ops.attention.pallas.tiling import KernelSizes, Tiling, make_tpu_tiling
from deberta_jax.ops.attention.reference import reference_attention
from deberta_jax.ops.attention.relative_position import make_relative_index, pairwise_index
from deberta_jax.ops.attention.tpu import grid, strips, words
from deberta_jax.ops.dropout import dropout_seeds
from deberta_jax.sharding import make_mesh
from tests.kernel_cases import (
    ARRAYS,
    BOTH,
    C2P,
    NEITHER,
    P2C,
    assert_agree,
    definition,
    definition_dropping,
    hidden_queries,
    make_case,
    relative_index_of,
    run,
)

interpreted = functools.partial(pallas_attention, interpret="tpu")


WITHOUT_A_PRODUCT = pytest.mark.skipif(
    jax.__version_info__ >= (0, 11), reason="XLA's CPU backend has no product of bfloat16 in one of the forms needed"
)


def interpreted_in_blocks(block_size):
    """The kernel with short texts divided into several blocks; None: as it divides them itself."""
    return functools.partial(interpreted, sizes=KernelSizes(block_size=block_size))


LENGTHS = (1, 2, 63, 127, 128, 129, 255, 257, 300, 384, 450, 513, 600, 640, 700)
MASKS = ("none", "padding", "segments", "pairwise", "all")


@pytest.mark.parametrize(
    ("length", "heads", "size", "generation", "mask", "without", "block"),
    [
        (1, 2, 32, "v3", "none", BOTH, None),
        (100, 3, 64, "v1", "padding", BOTH, None),
        (300, 2, 64, "hf", "all", BOTH, 128),
        (450, 2, 64, "v3", "segments", BOTH, 128),
        (200, 1, 128, "v1", "pairwise", C2P, None),
        (300, 2, 20, "v3", "none", P2C, 128),
        pytest.param(130, 1, 256, "v3", "segments", NEITHER, None, marks=pytest.mark.long),
        *(
            pytest.param(length, heads, size, generation, mask, without, block, marks=pytest.mark.long)
            for n, length in enumerate(LENGTHS)
            for m, mask in enumerate(MASKS)
            for heads, size in ((((2, 64), (3, 32), (1, 128), (5, 48))[(n + m) % 4]),)
            for generation in (("v1", "v3", "hf")[(n + 2 * m) % 3],)
            for without in ((BOTH, BOTH, C2P, P2C)[(n + 3 * m) % 4],)
            for block in ((None, 128, 256)[(n + m) % 3],)
        ),
    ],
)
def test_forward_and_gradients_are_the_definition(length, heads, size, generation, mask, without, block):
    arrays, masks, relative_index = make_case(length, heads, size, generation, mask, without)
    found = run(interpreted_in_blocks(block), arrays, masks, relative_index)
    assert_agree(found, run(definition, arrays, masks, relative_index))
    hidden = hidden_queries(masks, arrays)
    assert length <= 8 or hidden.any() == (mask != "none")
    assert not found["context"][hidden].any()


@pytest.mark.long
@pytest.mark.parametrize(("length", "generation"), [(1100, "v3"), (2048, "v3"), (1100, "v1")])
def test_long_texts_with_far_blocks(length, generation):
    arrays, masks, relative_index = make_case(length, 2, 64, generation, "segments", batch=1)
    assert make_tpu_tiling(length, 2, 64, relative_index, scale=1.0, dropout_rate=0.0).far == (-2, 2)
    assert_agree(run(interpreted, arrays, masks, relative_index), run(definition, arrays, masks, relative_index))


def test_far_blocks_begin_where_every_distance_reads_one_row():
    for length, generation in ((700, "v1"), (700, "hf"), (2048, "v3"), (1500, "v1")):
        relative_index = relative_index_of(generation, length)
        tiling = make_tpu_tiling(length, 12, 64, relative_index, scale=1.0, dropout_rate=0.0)
        at = np.arange(length)
        block = at // tiling.block_size
        offset, row = block[None] - block[:, None], pairwise_index(relative_index)
        for side, bound in zip((-1, 1), tiling.far, strict=True):
            far = [len(np.unique(row[offset == d])) == 1 for d in range(side, side * tiling.blocks, side)]
            known = [side * d >= side * bound for d in range(side, side * tiling.blocks, side)]
            assert far == known
    unclipped = make_relative_index(2000, 2000, buckets=-1, max_distance=2000, clamp=False)
    tiling = make_tpu_tiling(2000, 12, 64, unclipped, scale=1.0, dropout_rate=0.0)
    assert tiling.far == (-tiling.blocks, tiling.blocks)
    assert tiling.table_rows == 2 * tiling.padded_length


@pytest.mark.slow
def test_dropout_is_the_same_in_forward_and_backward():
    """Against the definition's formula with the mask written out by numpy, which uses no kernel."""
    arrays, masks, relative_index = make_case(150, 3, 32, mask="segments")
    key, rate = jax.random.key(5), 0.3
    keep = keep_mask(np.asarray(dropout_seeds(key)), 2, 3, 150, rate)

    expected = run(definition_dropping(keep, rate), arrays, masks, relative_index)
    found = run(interpreted_in_blocks(128), arrays, masks, relative_index, dropout_rate=rate, dropout_key=key)
    assert_agree(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 2, "tensor": 2}, pytest.param({"fsdp": 4}, marks=pytest.mark.long)])
def test_devices_change_nothing(mesh):
    """Examples and heads over simulated devices, dropout included, against one device. 4 do not divide 2: not used."""
    arrays, masks, relative_index = make_case(60, 4, 32, mask="all")
    options = {"dropout_rate": 0.2, "dropout_key": jax.random.key(3)}
    whole = run(interpreted, arrays, masks, relative_index, **options)
    with jax.set_mesh(make_mesh(**mesh, devices=jax.devices()[:4])):
        divided = run(interpreted, arrays, masks, relative_index, **options)
    for name, a in whole.items():
        np.testing.assert_allclose(divided[name], a, rtol=0, atol=2e-6 * np.abs(a).max(), err_msg=name)


def test_dropout_mask_is_random():
    """Probabilities, pairs of neighbours, heads, examples and seeds: all as of independent draws."""
    rate, shape = 0.1, (3, 4, 256, 256)
    mask = keep_mask(np.uint32([7, 9]), *shape[:3], rate)
    other = keep_mask(np.uint32([8, 9]), *shape[:3], rate)
    assert np.array_equal(mask, keep_mask(np.uint32([7, 9]), *shape[:3], rate))
    spread = (rate * (1 - rate)) ** 0.5
    assert abs(mask.mean() - (1 - rate)) < 4 * spread / mask.size**0.5
    for axes in ((0, 1, 2), (0, 1, 3), (2, 3)):  # every key, every query, every head
        means = mask.mean(axis=axes)
        count = mask.size / means.size
        assert np.abs(means - (1 - rate)).max() < 5 * spread / count**0.5
        assert 0.75 < means.std() / (spread / count**0.5) < 1.25 or means.size < 100
    dropped = ~mask
    pairs = {
        "key": (dropped[..., 1:], dropped[..., :-1]),
        "query": (dropped[:, :, 1:], dropped[:, :, :-1]),
        "diagonal": (dropped[:, :, 1:, 1:], dropped[:, :, :-1, :-1]),
        "head": (dropped[:, 1:], dropped[:, :-1]),
        "example": (dropped[1:], dropped[:-1]),
        "transposed": (dropped, dropped.swapaxes(2, 3)),
        "seed": (dropped, ~other),
    }
    for name, (a, b) in pairs.items():
        together = (a & b).mean()
        assert abs(together - rate**2) < 5 * rate / a.size**0.5, name
    bits = np.packbits(keep_mask(np.uint32([1, 2]), 1, 4, 512, 0.5))  # bytes of a fair coin: chi square, 255 degrees
    counts = np.bincount(bits, minlength=256)
    assert ((counts - bits.size / 256) ** 2 / (bits.size / 256)).sum() < 255 + 5 * 510**0.5


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["segments", pytest.param("none", marks=pytest.mark.long)])
def test_bfloat16_errs_no_more_than_the_definition(mask):
    arrays, masks, relative_index = make_case(256, 2, 64, mask=mask, dtype=jnp.bfloat16)
    assert_errs_like_the_definition(interpreted_in_blocks(128), arrays, masks, relative_index)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "heads", "size", "generation", "mask", "factor", "block"),
    [
        (128, 2, 64, "released", "segments", 2.6, None),
        pytest.param(128, 4, 32, "released", "segments", 2.6, None, marks=pytest.mark.long),
        pytest.param(128, 2, 64, "released", "none", 1.0, None, marks=pytest.mark.long),
        pytest.param(300, 3, 64, "released", "padding", 1.0, None, marks=pytest.mark.long),
        pytest.param(256, 2, 64, "released", "none", 2.6, None, marks=pytest.mark.long),
        pytest.param(512, 2, 64, "released", "segments", 2.4, None, marks=pytest.mark.long),
        pytest.param(200, 2, 128, "released", "pairwise", 2.4, None, marks=[pytest.mark.long, WITHOUT_A_PRODUCT]),
        pytest.param(256, 2, 64, "released", "none", 2.6, 128, marks=pytest.mark.long),
        pytest.param(300, 2, 64, "released", "segments", 2.4, 128, marks=pytest.mark.long),
        pytest.param(600, 4, 32, "v3", "segments", 2.0, 128, marks=pytest.mark.long),  # with far blocks
        # The gradient of a table sums more pairs of tokens here, and the definition's error falls.
        pytest.param(1100, 2, 64, "released", "none", 1.0, None, marks=pytest.mark.long),
        pytest.param(1100, 2, 64, "v3", "none", 1.8, None, marks=pytest.mark.long),
    ],
)
def test_bfloat16_errs_no_more_than_the_definition_where_scores_are_large(
    length, heads, size, generation, mask, factor, block
):
    """Where the largest score of a row is 20 to 40, as in trained models, errors of scores show most."""
    arrays, masks, relative_index = make_case(length, heads, size, generation, mask, dtype=jnp.bfloat16)
    for name in ("query", "key", "pos_key", "pos_query"):
        arrays[name] = (np.float32(arrays[name]) * factor).astype(jnp.bfloat16)
    assert_errs_like_the_definition(interpreted_in_blocks(block), arrays, masks, relative_index)


def assert_errs_like_the_definition(attend, arrays, masks, relative_index):
    """Context and all five gradients: at most 1.3 times the error of the definition in bfloat16."""
    exact = run(definition, {name: np.float32(a) for name, a in arrays.items()}, masks, relative_index)
    error = lambda found: {name: np.linalg.norm(found[name] - a) / np.linalg.norm(a) for name, a in exact.items()}
    ours, theirs = (error(run(f, arrays, masks, relative_index)) for f in (attend, definition))
    for name in exact:
        assert 0 < ours[name] <= 1.3 * theirs[name], (name, ours[name], theirs[name])


@pytest.mark.slow
def test_blocks_without_a_pair_are_not_computed():
    """NaN values in another text reach a block that is computed, even under weight 0; and its sums stay finite."""
    arrays, _, relative_index = make_case(384, 2, 64, batch=1)
    segment_ids = np.repeat(np.int32([[1, 2, 0]]), 128, axis=1)
    own = (segment_ids == 1)[..., None, None]
    arrays["value"] = np.where(own, arrays["value"], np.float32(np.nan))
    arrays["cotangent"] = np.where(own, arrays["cotangent"], 0)
    found = run(
        interpreted_in_blocks(128), arrays, {"segment_ids": segment_ids, "attention_mask": None}, relative_index
    )
    first = {name: a if name.startswith("pos") else a[:, :128] for name, a in arrays.items()}
    expected = run(definition, first, {"segment_ids": None, "attention_mask": None}, relative_index[256:-256])
    for name in ("context", "query", "key", "value"):
        np.testing.assert_allclose(found[name][:, :128], expected[name], atol=2e-5 * np.abs(expected[name]).max())


@pytest.mark.parametrize("order", [grid.QUERY_MAJOR, grid.KEY_MAJOR])
def test_schedule_visits_the_blocks_that_have_pairs_and_fetches_no_other(order):
    random, batch, length = np.random.RandomState(1), 3, 1024
    tiling = Tiling(
        length=length,
        block_size=128,
        blocks=8,
        heads=1,
        head_size=128,
        padded_heads=1,
        lanes_per_head=128,
        group=1,
        near=(-7, 7),
        far=(-8, 8),
        scale=1.0,
        dropout_rate=0.0,
        all_heads=1,
    )
    segment_ids = np.cumsum(random.random_sample((batch, length)) < 0.01, axis=1).astype(np.int32)
    segment_ids[0, 700:], segment_ids[2] = 0, 0
    attention_mask = np.repeat(np.repeat(random.random_sample((batch, 8, 8)) < 0.7, 128, axis=1), 128, axis=2)
    for given in ((segment_ids, None), (None, attention_mask), (segment_ids, attention_mask)):
        steps = grid.schedule(tiling, *(None if a is None else jnp.asarray(a) for a in given), order)
        steps = np.asarray(steps).reshape(batch, 8, 8)
        allowed = pairwise_mask(*(None if a is None else jnp.asarray(a) for a in given))
        has_pair = np.asarray(allowed).reshape(batch, 8, 128, 8, 128).any(axis=(2, 4))
        has_pair = has_pair if order.query_outer else has_pair.swapaxes(1, 2)
        if given[0] is None or given[1] is None:
            np.testing.assert_array_equal(steps & 1, has_pair)
        else:
            assert (steps & 1)[has_pair].all()
        for b, outer in np.ndindex(batch, 8):
            visited = {inner for inner in range(8) if steps[b, outer, inner] & 1}
            fetched = {int(step) >> 1 for step in steps[b, outer]}
            assert fetched == visited or not visited
            assert all(steps[b, outer, inner] >> 1 == inner for inner in visited)


TILE = np.random.RandomState(0).standard_normal((128, 128)).astype(np.float32)


def test_tiles_are_shifted_and_back():
    np.testing.assert_array_equal(strips.roll_rows(TILE), np.stack([np.roll(row, i + 1) for i, row in enumerate(TILE)]))
    wide, (i, j) = np.concatenate([TILE, TILE.T, -TILE], axis=1), np.indices((128, 256))
    np.testing.assert_array_equal(strips.rel_shift(wide), wide[i, 127 - i + j])
    back = np.zeros((128, 384), np.float32)
    back[i, 127 - i + j] = wide[:, :256]
    np.testing.assert_array_equal(strips.rel_unshift(jnp.asarray(wide[:, :256])), back)


def test_words_hold_the_scores_of_two_heads():
    random = np.random.RandomState(0)
    scores = [np.float32(random.uniform(-1, 1, TILE.shape) * words.LARGEST) for _ in range(2)]
    for head, sign in ((0, 1), (0, -1), (1, 1), (1, -1)):
        scores[head][:, 3 + head * 2 + (sign > 0)] = sign * words.LARGEST
    held = words.Words(heads=2, shared=2)
    packed = words.pack_scores([jnp.asarray(x) for x in scores])
    for head in range(2):
        error = np.abs(words.unpack_scores(held, head, packed) - scores[head])
        assert error.max() <= 2.0**15 + 2.0**8  # half of a multiple of 2^16, and float32's rounding


def test_units_are_powers_of_two_that_bound_every_score():
    bounds = jnp.float32([0.0, 1e-20, 0.7, 1.0, np.nextafter(np.float32(1), 2), 5.0, 1e30])
    units = words.power_of_two(bounds)
    np.testing.assert_array_equal(units[2:6], [1, 1, 2, 8])
    assert (units >= bounds).all()
    np.testing.assert_array_equal(units * words.inverse(units), np.ones(7))


def test_scores_as_large_as_norms_allow_do_not_overflow():
    """Tokens and rows of the tables are one vector with either sign: each score is as large as its bound."""
    arrays, masks, relative_index = make_case(128, 2, 64, "released", "padding", dtype=jnp.bfloat16)
    for n, name in enumerate(("query", "key", "pos_key", "pos_query")):
        signs = np.sign(np.random.RandomState(n).standard_normal(arrays[name].shape[:-1]))[..., None]
        arrays[name] = (signs * np.linspace(0.1, 0.5, 64)).astype(jnp.bfloat16)
    found = run(interpreted, arrays, masks, relative_index)
    exact = run(definition, {name: np.float32(a) for name, a in arrays.items()}, masks, relative_index)
    for name, a in exact.items():
        assert np.linalg.norm(found[name] - a) <= 5e-3 * np.linalg.norm(a), name


@pytest.mark.long
def test_the_roll_of_the_interpreter_is_the_tpus():
    def kernel(x, rolled, rolled_on_tpu):
        rolled[...], rolled_on_tpu[...] = strips.roll_rows(x[...]), strips.roll_rows_on_tpu(x[...])

    like = jax.ShapeDtypeStruct(TILE.shape, jnp.float32)
    rolled, rolled_on_tpu = pl.pallas_call(kernel, out_shape=(like, like), interpret="tpu")(TILE)
    np.testing.assert_array_equal(rolled, rolled_on_tpu)


def test_what_it_cannot_do_is_refused():
    arrays, _, relative_index = make_case(8, 1, 32)
    arrays.pop("cotangent")
    arrays = {name: jnp.asarray(a) for name, a in arrays.items()}
    half = {name: a.astype(np.float16) for name, a in arrays.items()}
    inputs = lambda arrays: AttentionInputs(**arrays, relative_index=relative_index, scale=1.0)
    attend = jax.jit(lambda arrays: pallas_attention(inputs(arrays)))
    with pytest.raises(InputError, match="on a TPU in float32 or bfloat16, not float16; use another dtype, or"):
        attend.trace(half).lower(lowering_platforms=("tpu",))
    with pytest.raises(InputError, match=r"not bfloat16, float32; use"):
        interpreted(inputs(arrays | {"key": arrays["key"].astype(jnp.bfloat16)}))
    length = 65537
    arrays, relative_index = (
        {name: jax.ShapeDtypeStruct((1, length, 1, 32), jnp.float32) for name in ARRAYS[:3]},
        np.zeros(1, np.int32),
    )
    with pytest.raises(InputError, match="at most 65536 tokens, not 65537"):
        jax.eval_shape(lambda a: interpreted(inputs(a | {"pos_key": None, "pos_query": None})), arrays)


@pytest.fixture
def fresh_check():
    kernel_agrees.cache_clear()
    yield functools.partial(kernel_agrees, interpret="tpu")
    kernel_agrees.cache_clear()


def test_self_check_agrees_also_while_tracing(fresh_check, caplog):
    caplog.set_level(logging.INFO)

    @jax.jit
    def traced(x):
        assert fresh_check("float32", length=100)
        return x + 1

    assert jax.grad(traced)(1.0) == 1.0
    assert fresh_check("float32", length=100)
    assert [r.levelname for r in caplog.records if "definition" in r.message] == ["INFO"]
    assert "attention kernel on cpu in float32: agrees with the definition" in caplog.text


def wrong_sign(inputs, **options):
    return interpreted_whole(dataclasses.replace(inputs, pos_query=-inputs.pos_query), **options)


def wrong_gradient(inputs, **options):
    key = 2 * inputs.key - jax.lax.stop_gradient(inputs.key)
    return interpreted_whole(dataclasses.replace(inputs, key=key), **options)


def not_finite(inputs, **options):
    return interpreted_whole(dataclasses.replace(inputs, value=inputs.value * jnp.inf), **options)


def does_not_compile(inputs, **options):
    raise RuntimeError("Mosaic failed to compile\nand much more")


def interpreted_whole(inputs, *, interpret):
    """The definition itself in the kernel's place: cheap, and only what is broken on purpose is wrong."""
    rate = inputs.dropout_rate
    context, weights = reference_attention(dataclasses.replace(inputs, dropout_rate=0.0, dropout_key=None))
    if not rate:
        return context
    batch, length, heads, _ = inputs.query.shape
    with jax.ensure_compile_time_eval():
        keep = keep_mask(np.asarray(dropout_seeds(jax.random.key(0))), batch, heads, length, rate)
    return jnp.einsum("BNTS,BSNH->BTNH", jnp.where(keep, weights / (1 - rate), 0), inputs.value)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (wrong_sign, "not used, it differs from the definition"),
        (wrong_gradient, "not used, it differs from the definition; largest relative difference"),
        (not_finite, "largest relative difference inf"),
        (does_not_compile, "not used, it failed: RuntimeError: Mosaic failed to compile"),
    ],
)
def test_self_check_refuses_a_broken_kernel(fresh_check, caplog, broken, message):
    assert not fresh_check("float32", attend=broken, length=20)
    (record,) = [r for r in caplog.records if r.name.endswith("self_check")]
    assert record.levelname == "WARNING"
    assert message in record.getMessage()
    assert "\n" not in record.getMessage()
