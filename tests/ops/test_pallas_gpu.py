"""The GPU kernel in Pallas' interpreter against the definition, and lowered for CUDA: no GPU ever ran it.

``tests/aot_gpu`` compiles it for GPUs.
"""

import contextlib
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from deberta_jax.errors import InputError
from deberta_jax.ops.attention import disentangled_attention, expected_implementation
from deberta_jax.ops.attention.dropout import keep_mask
from deberta_jax.ops.attention.pallas.kernel_attention import pallas_attention
from deberta_jax.ops.attention.pallas.platforms import KERNEL_PLATFORMS, check_device, gpu_capability, import_kernels
from deberta_jax.ops.attention.pallas.self_check import kernel_agrees, kernel_lowers
from deberta_jax.ops.attention.pallas.tiling import KernelSizes, make_gpu_tiling, make_tpu_tiling
from deberta_jax.ops.attention.relative_position import compact_relative_index, make_relative_index
from deberta_jax.ops.dropout import dropout_seeds
from deberta_jax.planning.cards import CARDS, card_device
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
    run,
)

needs_kernels = pytest.mark.skipif(jax.__version_info__ < (0, 11, 2), reason="the GPU kernels need JAX 0.11.2")
each_kernel = pytest.mark.parametrize("kernel", ["hopper", "portable"])


def interpreted(kernel, block_size=None, **sizes):
    """The kernel in blocks of one size; a GPU has 64, and of smaller ones short texts have far pairs."""
    sizes = KernelSizes(block_size=block_size, hopper=kernel == "hopper", **sizes)
    return functools.partial(pallas_attention, interpret="gpu", sizes=sizes)


@needs_kernels
@each_kernel
def test_gradients_dropout_masks_and_far_blocks_together(kernel):
    """Packed texts with far blocks on both sides, against the formula with numpy's dropout mask; in several blocks."""
    arrays, masks, relative_index = make_case(130, 2, 20, mask="segments")
    tiling = make_tpu_tiling(130, 2, 20, relative_index, scale=1.0, dropout_rate=0.0)
    tiling = make_gpu_tiling(tiling, relative_index, capability="9.0", sizes=KernelSizes(block_size=16))
    assert (tiling.blocks, tiling.far) == (9, (-5, 5))
    key, rate = jax.random.key(5), 0.3
    keep = keep_mask(np.asarray(dropout_seeds(key)), 2, 2, 130, rate)
    expected = run(definition_dropping(keep, rate), arrays, masks, relative_index)
    found = run(interpreted(kernel, 16), arrays, masks, relative_index, dropout_rate=rate, dropout_key=key)
    assert_agree(found, expected)
    assert not found["context"][hidden_queries(masks, arrays)].any()


LENGTHS = (1, 2, 17, 63, 64, 65, 100, 129, 257, 450, 1275)
MASKS = ("none", "padding", "segments", "pairwise", "all")


@needs_kernels
@pytest.mark.long
@each_kernel
@pytest.mark.parametrize(
    ("length", "heads", "size", "generation", "mask", "without", "block"),
    [
        (130, 1, 256, "v3", "segments", NEITHER, 16),
        (130, 3, 32, "v3", "segments", BOTH, 64),
        *(
            (length, heads, size, generation, mask, without, block)
            for n, length in enumerate(LENGTHS)
            for m, mask in enumerate(MASKS)
            if (n + m) % 2 == 0
            for heads, size in ((((2, 64), (3, 32), (1, 128), (5, 48))[(n + m) % 4]),)
            for generation in (("v1", "v3", "hf")[(n + 2 * m) % 3],)
            for without in ((BOTH, BOTH, C2P, P2C)[(n + 3 * m) % 4],)
            for block in ((64, 16, 32)[n % 3],)
        ),
    ],
)
def test_forward_and_gradients_are_the_definition(kernel, length, heads, size, generation, mask, without, block):
    arrays, masks, relative_index = make_case(length, heads, size, generation, mask, without)
    found = run(interpreted(kernel, block), arrays, masks, relative_index)
    assert_agree(found, run(definition, arrays, masks, relative_index))
    hidden = hidden_queries(masks, arrays)
    assert length <= 8 or hidden.any() == (mask != "none")
    assert not found["context"][hidden].any()


@needs_kernels
@pytest.mark.long
@each_kernel
@pytest.mark.parametrize("generation", ["v1", "hf", "v3"])
def test_work_is_divided_among_few_programs(kernel, generation):
    """Programs that take several blocks in turn leave nothing behind in their buffers, and add up the tables."""
    few_programs = interpreted(kernel, 16, max_programs=3)
    arrays, masks, relative_index = make_case(100, 2, 16, generation, "all")
    assert_agree(run(few_programs, arrays, masks, relative_index), run(definition, arrays, masks, relative_index))


@needs_kernels
@pytest.mark.long
@each_kernel
@pytest.mark.parametrize(("mask", "factor"), [("segments", 1.0), ("none", 1.0), ("segments", 2.4)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_errs_no_more_than_the_definition(kernel, mask, factor, dtype):
    """Also where the largest score of a row is 20 to 40, as in trained models, and errors of scores show most."""
    arrays, masks, relative_index = make_case(256, 2, 64, mask=mask, dtype=dtype)
    for name in ("query", "key", "pos_key", "pos_query"):
        arrays[name] = (np.float32(arrays[name]) * factor).astype(dtype)
    exact = run(definition, {name: np.float32(a) for name, a in arrays.items()}, masks, relative_index)
    error = lambda found: {name: np.linalg.norm(found[name] - a) / np.linalg.norm(a) for name, a in exact.items()}
    ours, theirs = (
        error(run(interpreted(kernel), arrays, masks, relative_index)),
        error(run(definition, arrays, masks, relative_index)),
    )
    for name in exact:
        assert 0 < ours[name] <= 1.3 * theirs[name], (name, ours[name], theirs[name])


@needs_kernels
@pytest.mark.long
@each_kernel
def test_float16_products_beyond_its_largest_number(kernel):
    arrays, masks, relative_index = make_case(40, 2, 16, mask="segments")
    arrays = {
        name: (a * (1 if name in ("value", "cotangent") else 200)).astype(np.float16) for name, a in arrays.items()
    }
    assert np.abs(np.einsum("btnh,bsnh->bnts", *(np.float32(arrays[name]) for name in ARRAYS[:2]))).max() > 65504
    found = run(interpreted(kernel), arrays, masks, relative_index)
    assert all(np.isfinite(a).all() for a in found.values())
    exact = run(definition, {name: np.float32(a) for name, a in arrays.items()}, masks, relative_index)
    np.testing.assert_allclose(found["context"], exact["context"], atol=2e-2)


@needs_kernels
@pytest.mark.long
@each_kernel
def test_blocks_of_other_texts_are_not_computed(kernel):
    """NaN in another text reaches a block that is computed, even under weight 0."""
    arrays, _, relative_index = make_case(96, 2, 16, batch=1)
    segment_ids = np.repeat(np.int32([[1, 2, 0]]), 32, axis=1)
    own = (segment_ids == 1)[..., None, None]
    arrays["value"] = np.where(own, arrays["value"], np.float32(np.nan))
    arrays["cotangent"] = np.where(own, arrays["cotangent"], 0)
    found = run(interpreted(kernel, 32), arrays, {"segment_ids": segment_ids, "attention_mask": None}, relative_index)
    first = {name: a if name.startswith("pos") else a[:, :32] for name, a in arrays.items()}
    expected = run(definition, first, {"segment_ids": None, "attention_mask": None}, relative_index[64:-64])
    for name in ("context", "query", "key", "value"):
        np.testing.assert_allclose(found[name][:, :32], expected[name], atol=2e-5 * np.abs(expected[name]).max())


@needs_kernels
@pytest.mark.long
@each_kernel
def test_devices_change_nothing(kernel):
    arrays, masks, relative_index = make_case(40, 4, 16, mask="all")
    options = {"dropout_rate": 0.2, "dropout_key": jax.random.key(3)}
    attend = interpreted(kernel, 32)
    whole = run(attend, arrays, masks, relative_index, **options)
    with jax.set_mesh(make_mesh(data=2, tensor=2, devices=jax.devices()[:4])):
        divided = run(attend, arrays, masks, relative_index, **options)
    for name, a in whole.items():
        np.testing.assert_allclose(divided[name], a, rtol=0, atol=2e-6 * np.abs(a).max(), err_msg=name)


@needs_kernels
@pytest.mark.long
@each_kernel
def test_self_check_agrees(kernel):
    kernel_agrees.cache_clear()
    attend = functools.partial(pallas_attention, sizes=KernelSizes(hopper=kernel == "hopper"))
    options = {"attend": attend, "length": 100, "interpret": "gpu"}
    assert all(kernel_agrees(dtype, **options) for dtype in KERNEL_PLATFORMS["gpu"].dtypes)
    kernel_agrees.cache_clear()


@needs_kernels
def test_a_kernel_that_cannot_be_traced_is_refused_on_its_platform_alone(monkeypatch, caplog):
    """As with a JAX whose Mosaic GPU has changed: TPUs are not affected, and ``auto`` says once that it takes xla."""

    def broken(*arguments, **options):
        raise TypeError("kernel() got an unexpected keyword argument")

    monkeypatch.setattr(import_kernels("gpu"), "forward", broken)
    arrays, _, relative_index = make_case(20, 1, 16, dtype=jnp.bfloat16)
    options = {"relative_index": relative_index, "scale": 1.0, "implementation": "pallas"}
    forward = jax.jit(lambda arrays: disentangled_attention(**arrays, **options)[0])
    traced = forward.trace({name: jnp.asarray(arrays[name]) for name in ARRAYS})
    traced.lower(lowering_platforms=("tpu",))
    with pytest.raises(InputError, match=r"a GPU: JAX .* cannot trace its kernel \(TypeError: kernel\(\) got.*'xla'"):
        traced.lower(lowering_platforms=("cuda",))
    kernel_lowers.cache_clear()
    assert [expected_implementation("gpu", jnp.bfloat16) for _ in range(2)] == ["xla"] * 2
    kernel_lowers.cache_clear()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "attention kernel for gpu in bfloat16: not used: InputError: attention='pallas' on a GPU" in caplog.text


@pytest.mark.parametrize(
    ("platform", "capability", "refused"),
    [
        ("gpu", "7.5", True),
        ("gpu", "gfx942", True),
        ("gpu", "8.0", False),
        ("gpu", "12.0", False),
        ("tpu", None, False),
    ],
)
def test_gpus_without_the_instructions_are_not_asked(platform, capability, refused):
    device = types.SimpleNamespace(platform=platform, compute_capability=capability, device_kind="A card")
    expected = pytest.raises(InputError, match=rf"8\.0 or later, not {capability} \(A card\); use attention='xla'")
    with expected if refused else contextlib.nullcontext():
        check_device(device)


@pytest.mark.parametrize(
    ("capability", "head_size", "hopper"),
    [("9.0", 64, True), ("9.0", 128, True), ("9.0", 129, False), ("8.0", 64, False), ("10.0", 64, False)],
)
def test_the_kernel_is_chosen_by_capability(capability, head_size, hopper):
    major, minor = capability.split(".")
    card = next(card for card in CARDS.values() if card.capability == (int(major), int(minor)))
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=card_device(card))):
        assert gpu_capability() == capability
    relative_index = make_relative_index(100, 32, buckets=32, max_distance=64, clamp=True)
    tiling = make_tpu_tiling(100, 2, head_size, relative_index, scale=1.0, dropout_rate=0.0)
    assert make_gpu_tiling(tiling, relative_index, capability=capability).hopper == hopper


def test_a_gpu_that_says_no_capability_is_taken_for_a_hopper():
    assert gpu_capability() == "9.0"
    device = AbstractDevice(device_kind="A card", num_cores=132, platform="gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        assert gpu_capability() == "9.0"


def program(length, size, dtype, *, heads=2, batch=2, pairwise_mask=False):
    """Forward and backward with dropout of the released v3 index, and the shapes of its arguments."""
    relative_index = compact_relative_index(
        make_relative_index(length, 256, buckets=256, max_distance=512, clamp=True)
    )[1]
    like = jax.ShapeDtypeStruct
    x, table = like((batch, length, heads, size), dtype), like((int(relative_index.max()) + 1, heads, size), dtype)
    mask = like((batch, length, length), bool) if pairwise_mask else like((batch, length), bool)

    def both(arrays, mask, key, cotangent):
        options = {"scale": 0.07, "attention_mask": mask, "dropout_rate": 0.1, "dropout_key": key}
        options |= {"implementation": "pallas"}
        context, pull = jax.vjp(lambda *arrays: disentangled_attention(*arrays, relative_index, **options)[0], *arrays)
        return context, pull(cotangent)

    return jax.jit(both), ((x, x, x, table, table), mask, jax.eval_shape(lambda: jax.random.key(0)), x)


QUICK_LOWERING = (2048, 32, jnp.bfloat16)


@needs_kernels
@pytest.mark.parametrize("card", ["h100", pytest.param("a100-80", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("length", "size", "dtype"),
    [
        pytest.param(*case, marks=[] if case == QUICK_LOWERING else pytest.mark.long)
        for length in (384, 2048)
        for size in (32, 64, 128)
        for dtype in (jnp.bfloat16, jnp.float16)
        for case in [(length, size, dtype)]
    ],
)
def test_lowers_for_cuda(length, size, dtype, card):
    """One forward and two backward kernels; around them nothing score-shaped, and no sum without a fixed order."""
    both, arguments = program(length, size, dtype, pairwise_mask=length == 384)
    mosaic = "mosaic_gpu_v2"
    checks = [jax.export.DisabledSafetyCheck.custom_call(mosaic)]
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=card_device(CARDS[card]))):
        exported = jax.export.export(both, platforms=["cuda"], disabled_checks=checks)(*arguments)
    lines = exported.mlir_module().splitlines()
    assert sum(f"custom_call @{mosaic}" in line for line in lines) == 3
    moved = [line for line in lines if "stablehlo.gather" in line]
    assert moved
    assert all(f"tensor<2x{length}" not in line and f"tensor<2x2x{length}" not in line for line in moved)
    assert not any("stablehlo.scatter" in line for line in lines)
    assert length == 384 or not any(f"{length}x{length}x" in line for line in lines)


def test_other_machines_are_refused_when_the_program_is_lowered():
    both, arguments = program(20, 16, jnp.float32)
    for machine in ("cpu", "rocm"):
        with pytest.raises(
            InputError, match="kernels for TPUs and for NVIDIA's GPUs, and this program is for neither; use"
        ):
            both.trace(*arguments).lower(lowering_platforms=(machine,))
    arrays, _, relative_index = make_case(20, 1, 16)
    with pytest.raises(InputError, match=r"use attention='auto', or 'blocked' on a CPU, or 'xla'"):
        disentangled_attention(
            **{name: jnp.asarray(arrays[name]) for name in ARRAYS},
            relative_index=relative_index,
            scale=1.0,
            implementation="pallas",
        )
