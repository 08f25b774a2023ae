"""Every attention implementation against scores written out in numpy float64, and against one another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.errors import InputError
from deberta_jax.ops.attention import WHOLE_SCORES, disentangled_attention, entry
from deberta_jax.ops.attention.cpu.block_geometry import BlockSizes
from deberta_jax.ops.attention.dropout import keep_mask
from deberta_jax.ops.attention.pallas import self_check
from deberta_jax.ops.attention.relative_position import make_relative_index
from deberta_jax.ops.dropout import dropout_seeds
from tests.attention_cases import (
    H,
    N,
    T,
    attend,
    by_hand,
    gradient_program,
    gradients_of,
    make_inputs,
    outputs_of,
    relative_error,
    relative_index_of,
)

# The kernels have tests of their own, in the interpreter.
IMPLEMENTATIONS = [implementation for implementation in entry.IMPLEMENTATIONS if implementation != "pallas"]


MASK = np.array([[1] * T, [1, 1, 1, 1, 0, 1, 0, 0, 0]], bool)
SEGMENTS = np.array([[1] * 4 + [2] * 5, [3, 3, 1, 1, 1, 0, 2, 0, 0]], np.int32)
PAIRS = np.random.RandomState(1).random_sample((2, T, T)) < 0.5
PAIRS[0, 2] = False
MASKS = {
    "none": ({}, None),
    "tokens": ({"mask": MASK}, MASK[:, :, None] & MASK[:, None]),
    "pairs": ({"mask": PAIRS}, PAIRS),
    "segments": (
        {"segment_ids": SEGMENTS},
        (SEGMENTS[:, :, None] == SEGMENTS[:, None]) & (SEGMENTS != 0)[:, :, None],
    ),
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("generation", ["v1", "hf", "clamp"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dropped", [(), ("pos_key",), ("pos_query",), ("pos_key", "pos_query")], ids=str)
def test_context_and_weights_equal_the_definition(implementation, generation, mask, dropped):
    """Position-to-content reads the row of i - j like content-to-position, not the paper's j - i."""
    relative_index = relative_index_of(generation)
    arrays = make_inputs() | dict.fromkeys(dropped)
    given, pairs = MASKS[mask]
    context, weights = attend(arrays, relative_index, implementation=implementation, **given)
    expected_context, expected_weights = by_hand(arrays, relative_index, pairs)
    if implementation in WHOLE_SCORES:
        np.testing.assert_allclose(weights, expected_weights, atol=2e-6)
    np.testing.assert_allclose(context, expected_context, atol=5e-6)


@pytest.mark.parametrize(
    ("generation", "mask", "mixed"),
    [
        *((g, m, False) for g in ("v1", "clamp") for m in ("none", "pairs")),
        ("clamp", "segments", False),
        ("hf", "tokens", False),
        ("v1", "tokens", True),
    ],
)
def test_gradients_of_the_implementations_agree(generation, mask, mixed):
    random = np.random.RandomState(2)
    cotangents = random.standard_normal((2, T, N, H)), random.standard_normal((2, N, T, T))
    cotangents = tuple(np.float32(c) for c in cotangents)
    whole = np.zeros_like(cotangents[1])
    arrays = make_inputs()
    if mixed:
        arrays |= {name: np.float32(random.standard_normal((N, N))) for name in ("mix_scores", "mix_weights")}
    given, relative_index = MASKS[mask][0], relative_index_of(generation)
    implementations = [
        implementation
        for implementation in IMPLEMENTATIONS
        if implementation != "reference" and (implementation in WHOLE_SCORES or not mixed)
    ]
    definition = gradient_program("reference", relative_index, **given)
    for implementation in implementations:
        given_to = cotangents if implementation in WHOLE_SCORES else (cotangents[0], whole)
        expected = definition(arrays, given_to)
        for name, found in gradients_of(implementation, arrays, relative_index, given_to, **given).items():
            assert np.abs(expected[name]).max() > 1e-2
            np.testing.assert_allclose(found, expected[name], atol=2e-5, err_msg=f"{implementation} {name}")


# Span of the table, buckets a side, largest distance. The short ones reach their last row within a block or two, so
# that at 700 tokens most pairs are far ones.
INDICES = {"v3": (256, 256, 512), "v1": (512, -1, 512), "short": (4, 4, 7), "short v1": (16, -1, 16)}


@pytest.mark.parametrize("kind", INDICES)
@pytest.mark.parametrize(
    "length", [1, 40, 150, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 33, 257, 511, 513, 700, 1100))]
)
def test_implementations_agree_at_any_length(length, kind):
    """Lengths that are no multiple of a block, texts packed and padded: output and all five gradients in float32."""
    span, buckets, most = INDICES[kind]
    relative_index = make_relative_index(length, span, buckets=buckets, max_distance=most, clamp=True)
    arrays = make_inputs(span=span, length=length)
    random = np.random.RandomState(4)
    segments = np.stack([np.sort(random.randint(1, 4, length)), np.r_[np.full(length - 1, 2), 0]])
    segments[0, length - length // 9 :] = 0
    cotangents = np.float32(random.standard_normal((2, length, N, H))), np.float32(0)
    given = {"segment_ids": np.int32(segments)}
    expected = outputs_of("reference", arrays, relative_index, cotangents, **given)
    for implementation in set(IMPLEMENTATIONS) - {"reference"}:
        for name, found in outputs_of(implementation, arrays, relative_index, cotangents, **given).items():
            limit = 2e-6 if name == "context" else 2e-5
            assert relative_error(found, np.float64(expected[name])) < limit, (implementation, name)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dropout_is_the_same_in_forward_and_backward(implementation):
    """With one key the dropped attention is a smooth function: its gradient is that of central differences."""
    relative_index, random = relative_index_of("clamp"), np.random.RandomState(6)
    arrays, key = make_inputs(), jax.random.key(3)
    cotangent = np.float32(random.standard_normal((2, T, N, H)))
    options = {"mask": MASK, "dropout_rate": 0.4, "dropout_key": key}
    zeros = np.zeros((2, N, T, T), np.float32)
    found = gradients_of(implementation, arrays, relative_index, (cotangent, zeros), **options)
    attend_once = jax.jit(lambda a: attend(a, relative_index, implementation=implementation, **options)[0])
    value = lambda a: (np.float64(attend_once(a)) * cotangent).sum()
    for name in arrays:
        direction = np.float32(random.standard_normal(arrays[name].shape))
        up, down = (value({**arrays, name: arrays[name] + sign * np.float32(2e-2) * direction}) for sign in (1, -1))
        assert (np.float64(found[name]) * direction).sum() == pytest.approx((up - down) / 4e-2, rel=2e-2, abs=2e-2), (
            name
        )


def root_mean_square(x):
    return np.mean(np.square(np.float64(x))) ** 0.5


_ROUNDED_SCORES = "position scores pass the shift in bfloat16: the context's error is 1.31 times the definition's"


@pytest.mark.parametrize(
    "implementation", ["blocked", pytest.param("xla", marks=pytest.mark.xfail(strict=True, reason=_ROUNDED_SCORES))]
)
def test_bfloat16_error_is_that_of_the_definition(implementation):
    """Against float32, root mean square: output and gradients at most 1.3 times the definition's own error."""
    relative_index, random = (
        make_relative_index(150, 256, buckets=256, max_distance=512, clamp=True),
        np.random.RandomState(7),
    )
    draw = lambda *shape: random.standard_normal((*shape, 4, 64)).astype(jnp.bfloat16)
    rounded = {name: draw(6, 150) for name in ("query", "key", "value")}
    rounded |= {name: draw(512) for name in ("pos_key", "pos_query")}
    cotangents, scale = (np.float32(draw(6, 150)), np.float32(0)), (3 * 64) ** -0.5

    outputs = lambda arrays, implementation: outputs_of(implementation, arrays, relative_index, cotangents, scale=scale)
    truth = outputs({name: np.float32(a) for name, a in rounded.items()}, "reference")
    by_definition, found = outputs(rounded, "reference"), outputs(rounded, implementation)
    for name, exact in truth.items():
        error, allowed = (root_mean_square(np.float64(a[name]) - exact) for a in (found, by_definition))
        assert error <= 1.3 * allowed, name


@pytest.mark.parametrize(
    "implementation", [implementation for implementation in IMPLEMENTATIONS if implementation != "reference"]
)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_table_gradients_in_half_precision_where_many_distances_read_one_row(implementation, dtype):
    """292 distances read each of two rows of 16: at most four times the definition's error, which sums first."""
    length, span = 300, 8
    relative_index = make_relative_index(length, span, buckets=-1, max_distance=span, clamp=True)
    half = {name: jnp.asarray(a, dtype) for name, a in make_inputs(span=span, length=length).items()}
    cotangents = np.float32(np.random.RandomState(6).standard_normal(half["query"].shape)), np.float32(0)
    exact = gradients_of("reference", {name: np.float32(a) for name, a in half.items()}, relative_index, cotangents)
    by_definition, found = (
        gradients_of(name, half, relative_index, cotangents) for name in ("reference", implementation)
    )
    for table in ("pos_key", "pos_query"):
        error, allowed = (relative_error(a[table], np.float64(exact[table])) for a in (found, by_definition))
        assert error <= 4 * allowed, (table, error, allowed)


def test_an_implementation_without_whole_scores_refuses_to_return_weights():
    for implementation in set(entry.IMPLEMENTATIONS) - set(WHOLE_SCORES):
        with pytest.raises(InputError, match="never holds the whole scores"):
            attend(make_inputs(), relative_index_of("v1"), implementation=implementation, return_weights=True)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradient_is_the_finite_difference(implementation):
    """Against central differences of the float64 definition, along one random direction per array."""
    relative_index, arrays, random = relative_index_of("clamp"), make_inputs(), np.random.RandomState(3)
    cotangent = random.standard_normal((2, T, N, H))
    pairs = MASK[:, :, None] & MASK[:, None]
    zeros = np.zeros((2, N, T, T), np.float32)
    found = gradients_of(implementation, arrays, relative_index, (np.float32(cotangent), zeros), mask=MASK)
    value = lambda a: (by_hand(a, relative_index, pairs)[0] * cotangent).sum()
    for name in arrays:
        direction, step = random.standard_normal(arrays[name].shape), 1e-4
        moved = [{**arrays, name: arrays[name] + sign * step * direction} for sign in (1, -1)]
        difference = (value(moved[0]) - value(moved[1])) / (2 * step)
        assert (np.float64(found[name]) * direction).sum() == pytest.approx(difference, rel=1e-3)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_softmax_is_float32_in_bfloat16(implementation):
    arrays = {name: a.astype(jnp.bfloat16) for name, a in make_inputs().items()}
    context, weights = jax.jit(lambda a: attend(a, relative_index_of("clamp"), implementation=implementation))(arrays)
    assert context.dtype == jnp.bfloat16
    if implementation in WHOLE_SCORES:
        assert weights.dtype == jnp.float32
        np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
    exact, _ = by_hand({name: np.float32(a) for name, a in arrays.items()}, relative_index_of("clamp"))
    assert np.abs(np.float32(context) - exact).max() < 0.03


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_float16_products_beyond_its_largest_number(implementation):
    """Raw q.k and both position products exceed 65504; forward and gradients stay finite, and the weights right."""
    arrays = {name: (a * (200 if name != "value" else 1)).astype(np.float16) for name, a in make_inputs().items()}
    raw = np.einsum("btnh,bsnh->bnts", np.float32(arrays["query"]), np.float32(arrays["key"]))
    assert np.abs(raw).max() > 65504
    relative_index = relative_index_of("clamp")
    cotangents = np.ones(arrays["query"].shape, np.float16), np.zeros((2, N, T, T), np.float32)
    found = outputs_of(implementation, arrays, relative_index, cotangents, mask=MASK)
    exact, _ = by_hand(arrays, relative_index, MASK[:, :, None] & MASK[:, None])
    np.testing.assert_allclose(np.float32(found["context"]), exact, atol=2e-2)
    assert all(np.isfinite(np.float32(g)).all() for g in found.values())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_implementation_drops_the_same_weights(implementation):
    """Those that numpy's own hash of the key says, weight by weight; what is returned are the weights before."""
    several_blocks = BlockSizes(max_queries=4)
    arrays, relative_index, key, rate = make_inputs(), relative_index_of("clamp"), jax.random.key(8), 0.3
    options = {"mask": MASK, "dropout_rate": rate, "dropout_key": key, "sizes": several_blocks}
    context, weights = attend(arrays, relative_index, implementation=implementation, **options)
    _, plain = by_hand(arrays, relative_index, MASKS["tokens"][1])
    if implementation in WHOLE_SCORES:
        np.testing.assert_allclose(weights, plain, atol=2e-6)
    keep = keep_mask(np.asarray(dropout_seeds(key)), 2, N, T, rate)
    assert 0.2 < 1 - keep.mean() < 0.4
    expected = np.einsum("bnij,bjnh->binh", plain * keep / (1 - rate), np.float64(arrays["value"]))
    np.testing.assert_allclose(context, expected, atol=5e-6)


def test_dropout_in_a_text_too_long_for_its_counters_is_refused():
    length = 65537
    arrays = {name: jax.ShapeDtypeStruct((1, length, 1, 2), np.float32) for name in ("query", "key", "value")}
    attend = lambda a: disentangled_attention(
        **a,
        pos_key=None,
        pos_query=None,
        relative_index=np.zeros(2 * length - 1, np.int32),
        scale=1.0,
        dropout_rate=0.1,
        dropout_key=jax.random.key(0),
    )
    with pytest.raises(InputError, match="up to 65536 tokens"):
        jax.eval_shape(attend, arrays)


def test_unknown_implementation_and_wrong_index_are_refused():
    arrays = make_inputs()
    with pytest.raises(InputError, match=r"attention='flash'.*'auto', 'reference'"):
        attend(arrays, relative_index_of("v1"), implementation="flash")
    with pytest.raises(ValueError, match="17 distances"):
        attend(arrays, relative_index_of("v1")[:-1], implementation="auto")
    with pytest.raises(InputError, match=r"attention='shift': 'shift' is now called 'xla'; expected one of 'auto'"):
        attend(arrays, relative_index_of("v1"), implementation="shift")


@pytest.mark.parametrize(
    ("backend", "dtype", "whole", "agrees", "expected"),
    [
        ("cpu", "bfloat16", False, None, "blocked"),
        ("cpu", "float32", True, None, "reference"),
        ("gpu", "float16", False, True, "pallas"),
        ("gpu", "bfloat16", False, False, "xla"),
        ("tpu", "bfloat16", False, True, "pallas"),
        ("tpu", "bfloat16", False, False, "xla"),
        ("tpu", "float16", False, None, "xla"),
        ("tpu", "bfloat16", True, None, "xla"),
    ],
)
def test_auto_goes_by_backend_dtype_and_the_kernels_own_check(
    monkeypatch, caplog, backend, dtype, whole, agrees, expected
):
    """``agrees`` None: the device must not be asked, as the kernel is no candidate."""

    def ask(asked):
        assert agrees is not None
        assert asked == dtype
        return agrees

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(self_check, "kernel_agrees", ask)
    entry._log_choice.cache_clear()
    with caplog.at_level("INFO"):
        choices = [entry.choose_implementation("auto", dtype, whole_scores=whole) for _ in range(2)]
    entry._log_choice.cache_clear()
    assert choices == [expected] * 2
    assert len(caplog.records) == 1
    assert repr(expected) in caplog.text
    assert ("failed its check" in caplog.text) == (agrees is False)
