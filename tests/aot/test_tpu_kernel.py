"""The TPU kernel compiled for real TPU generations by libtpu, without a TPU. It ran on none: see ``selfcheck``."""

import importlib.util

import jax.numpy as jnp
import pytest

from benchmarks.tpu_aot import (
    GENERATIONS,
    HEADS,
    LENGTHS,
    bytes_accessed,
    bytes_refetched,
    compile_attention,
    largest_gather,
    make_rows,
)  # fmt: skip
from deberta_jax.ops.relative_position import table_rows

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install 'deberta_jax[tpu]'"),
    # libtpu says on import that it found no TPU.
    pytest.mark.filterwarnings("ignore"),
]
FEW = {("v5e", 128, 64), ("v5p", 384, 64), ("v6e", 512, 32), ("v6e", 2048, 128), ("v5e", 8192, 64), ("v5p", 4096, 64)}


@pytest.mark.parametrize(
    ("generation", "length", "head_size"),
    [
        pytest.param(*case, marks=[] if case in FEW else pytest.mark.long)
        for generation in GENERATIONS
        for length in LENGTHS
        for head_size in HEADS
        for case in [(generation, length, head_size)]
    ],
)
def test_forward_and_backward_compile_with_dropout(generation, length, head_size):
    compiled = compile_attention("pallas", generation, length, head_size=head_size, rate=0.1)
    assert compiled.as_text().count("tpu_custom_call") >= 2
    tables = 2 * length * HEADS[head_size] * head_size
    assert 0 < largest_gather(compiled) <= max(tables, 1024 * 768)


@pytest.mark.parametrize(
    "options",
    [
        {"pairs": True, "length": 512},
        {"backward": False, "length": 128},
        pytest.param({"dtype": jnp.float32, "length": 512}, marks=pytest.mark.long),
        pytest.param({"dtype": jnp.float32, "length": 8192}, marks=pytest.mark.long),
        pytest.param({"length": 700, "batch": 4, "rate": 0.1}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_other_forms_compile(options):
    compile_attention("pallas", "v5e", **options)


@pytest.mark.long
@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_table_with_a_row_for_each_distance_compiles_at_8192(generation):
    """v1 without clipping: no block is far, and the tables' gradients are as long as the text."""
    rows = table_rows(8192, 8192, buckets=-1, max_distance=8192, clamp=False)
    compile_attention("pallas", generation, 8192, rows=rows)


@pytest.mark.parametrize(("length", "limit"), [(128, 1.1), (512, 0.6), pytest.param(2048, 0.6, marks=pytest.mark.long)])
def test_traffic_against_plain_attention(length, limit):
    """Also with what the kernel fetches again, which the compiler does not count."""
    plain, kernel = (bytes_accessed(compile_attention(body, "v5e", length)) for body in ("plain", "pallas"))
    assert kernel <= limit * plain
    assert kernel + bytes_refetched(length) <= limit * plain


@pytest.mark.long
@pytest.mark.parametrize("length", [128, 512, 2048])
def test_the_shift_moves_at_most_five_times_plain_attentions_bytes(length):
    plain, shift = (compile_attention(body, "v5e", length) for body in ("plain", "shift"))
    assert bytes_accessed(shift) <= 5 * bytes_accessed(plain)
    assert largest_gather(shift) <= 2 * length * 768 < LENGTHS[length] * 12 * length**2


def test_rows_are_those_of_the_released_models():
    assert make_rows(512).max() == 511 - 1
