"""Quantized weights against what bitsandbytes recorded, and dequantization inside compiled programs."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.errors import InputError
from deberta_jax.ops.embedding_lookup import take_rows
from deberta_jax.ops.quantization import (
    LowRankSum,
    is_compressed,
    matrix_of,
    quantized_table,
    stack_matrices,
)
from deberta_jax.ops.quantized_matrix import (
    QuantizedMatrix,
    empty_matrix,
    join_rows,
    quantize,
    quantize_scales,
)

GOLDEN = dict(np.load(Path(__file__).resolve().parents[1] / "golden" / "quantization.npz"))
VALUES = GOLDEN["values"]


def recorded(name: str) -> QuantizedMatrix:
    """The quantized matrix that bitsandbytes made."""
    part = lambda key: GOLDEN.get(f"{name}_{key}")
    scheme = name.removesuffix("_double")
    block = VALUES.shape[1] if scheme == "int8" else 64
    return QuantizedMatrix(
        part("codes"),
        part("scales"),
        part("nested_scales"),
        part("offset"),
        scheme,
        VALUES.shape,
        block,
        np.dtype(np.float32),
    )


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_codes_and_scales_are_those_of_bitsandbytes(scheme):
    ours = quantize(VALUES, scheme)
    np.testing.assert_array_equal(ours.codes, recorded(scheme).codes)
    np.testing.assert_array_equal(ours.scales, recorded(scheme).scales)


def test_double_quantization_is_that_of_bitsandbytes():
    ours, theirs = quantize(VALUES, "nf4", double_quantization=True), recorded("nf4_double")
    np.testing.assert_array_equal(ours.codes, theirs.codes)
    # The mean is rounded once here; torch adds in an order that depends on the processor.
    np.testing.assert_allclose(ours.offset, theirs.offset, rtol=1e-6)
    codes, nested_scales = quantize_scales(quantize(VALUES, "nf4").scales, np.float32(theirs.offset))
    np.testing.assert_array_equal(codes, theirs.scales)
    np.testing.assert_array_equal(nested_scales, theirs.nested_scales)


@pytest.mark.parametrize("name", ["nf4", "nf4_double", "fp4", "int8"])
def test_values_are_those_of_bitsandbytes_on_the_host_and_compiled(name):
    matrix, values = recorded(name), GOLDEN[f"{name}_values"]
    array = stack_matrices([matrix, matrix], VALUES.shape[::-1], layered=True)
    compiled = np.asarray(jax.jit(lambda array: array.dequantize())(array))
    # bitsandbytes multiplies int8 codes by the scale and by 1/127 one after the other, and so rounds twice.
    np.testing.assert_allclose(matrix.dequantize(), values, rtol=3e-7 if name == "int8" else 0)
    np.testing.assert_array_equal(compiled, np.stack([matrix.dequantize().T] * 2))


def test_int4_has_the_nearest_of_15_levels():
    matrix = quantize(VALUES, "int4")
    blocks = VALUES.reshape(-1, 64).astype(np.float64)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    steps = np.rint(blocks / np.where(largest == 0, 1, largest) * 7)
    values = matrix.dequantize().reshape(-1, 64)
    np.testing.assert_allclose(values, steps / 7 * largest, rtol=1e-6, atol=1e-33)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("scheme", ["int8", "int4", "nf4"])
def test_stacked_kernels_keep_every_bit(scheme, double):
    if scheme == "int8" and double:
        pytest.skip("8 bits have no blocks")
    layers = [quantize(VALUES * scale, scheme, double_quantization=double) for scale in (1, 3)]
    array = stack_matrices(layers, (128, 3, 44), layered=True)
    assert array.shape == (2, 128, 3, 44)
    for i, layer in enumerate(layers):
        back = matrix_of(array, i)
        for field in dataclasses.fields(layer):
            np.testing.assert_array_equal(getattr(back, field.name), getattr(layer, field.name), field.name)
        np.testing.assert_array_equal(array.dequantize()[i], layer.dequantize().T.reshape(128, 3, 44))
    empty = empty_matrix(VALUES.shape, scheme, double_quantization=double)
    shape_of = lambda m: jax.tree.map(lambda a: (a.shape, a.dtype), stack_matrices([m], (128, 132), layered=False))
    assert jax.tree.structure(shape_of(empty)) == jax.tree.structure(shape_of(layers[0]))
    assert shape_of(empty) == shape_of(layers[0])


@pytest.mark.parametrize("size", [1, 8])
def test_parts_of_the_rows_join_to_the_whole(size):
    """With runs of 8 rows of 32 blocks every part has whole blocks of 256 scales; with single rows it has not."""
    values = np.random.default_rng(1).standard_normal((48, 2048)).astype(np.float32)
    whole = quantize(values, "nf4", double_quantization=True)
    groups = np.arange(48).reshape(-1, 3, size)
    parts = [groups[:, i].reshape(-1) for i in range(3)]
    taken = [whole.take_rows(rows) for rows in parts]
    for rows, part in zip(parts, taken, strict=True):
        np.testing.assert_array_equal(part.dequantize(), whole.dequantize()[rows])
        assert (part.nested_scales is None) == (size == 1)
    joined = join_rows(list(zip(parts, taken, strict=True)))
    np.testing.assert_array_equal(joined.dequantize(), whole.dequantize())
    np.testing.assert_array_equal(joined.codes, whole.codes)
    if size == 8:
        np.testing.assert_array_equal(joined.scales, whole.scales)
        np.testing.assert_array_equal(joined.nested_scales, whole.nested_scales)


def test_rows_of_an_embedding_table_are_dequantized_alone():
    table = quantized_table(quantize(VALUES, "int8"))
    ids = jnp.array([[5, 0, 131], [2, 5, 132]])
    rows = jax.jit(take_rows)(table, ids)
    np.testing.assert_array_equal(rows[:, :2], quantize(VALUES, "int8").dequantize()[np.asarray(ids)[:, :2]])
    assert np.isnan(rows[1, 2]).all(), "an id outside the table"
    compiled = jax.jit(take_rows).lower(table, ids).compile().as_text()
    assert "f32[132,128]" not in compiled


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_a_loop_over_layers_never_dequantizes_the_stack(scheme):
    layers = [quantize(VALUES[:128], scheme)] * 5
    array = stack_matrices(layers, (128, 128), layered=True)

    def run(array, x):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel.dequantize()), None), x, array)[0]

    x = jnp.ones((4, 128))
    compiled = jax.jit(run).lower(array, x).compile()
    floats = set(re.findall(r"f32\[([\d,]+)\]", compiled.as_text()))
    largest = max(int(np.prod([int(n) for n in shape.split(",")])) for shape in floats)
    assert largest == 128 * 128, "one layer"
    dense = jnp.asarray(array.dequantize())
    expected = x
    for i in range(5):
        expected = jnp.tanh(expected @ dense[i])
    np.testing.assert_allclose(compiled(array, x), expected, atol=1e-6)


def test_a_low_rank_update_has_gradients_of_a_merged_kernel():
    base = stack_matrices([quantize(VALUES, "nf4")], (128, 132), layered=False)
    keys = jax.random.split(jax.random.key(0), 3)
    a, b, x = (jax.random.normal(k, shape) for k, shape in zip(keys, ((128, 4), (4, 132), (3, 128)), strict=True))

    def compressed(a, b):
        kernel = LowRankSum(base, a, b, 0.5)
        assert is_compressed(kernel)
        return jnp.sum((x @ kernel.dequantize()) ** 2)

    def merged(a, b):
        return jnp.sum((x @ (jnp.asarray(base.dequantize()) + 0.5 * (a @ b))) ** 2)

    for ours, theirs in zip(jax.grad(compressed, (0, 1))(a, b), jax.grad(merged, (0, 1))(a, b), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "nf5"}, "quantization='nf5': expected one of 'int8', 'int4', 'nf4'"),
        ({"scheme": "fp4"}, "quantization='fp4'"),
        ({"scheme": "nf4", "block": 32}, "block 32: too small a block"),
        ({"scheme": "nf4", "block": 100}, "block 100: no size of a block"),
        ({"scheme": "nf4", "block": 256}, r"shape \[132, 128\] has no whole blocks of 256"),
        ({"scheme": "int8", "double_quantization": True}, "int8 has one scale for each output channel"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        quantize(VALUES, **options)
