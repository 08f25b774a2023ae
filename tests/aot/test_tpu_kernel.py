"""The TPU kernel compiled for real TPU generations by libtpu, without a TPU. It ran on none: see ``self_check``."""

import importlib.util
import re

import jax.numpy as jnp
import pytest

from benchmarks.tpu_aot import (
    GENERATIONS,
    HEADS,
    LENGTHS,
    bytes_accessed,
    bytes_refetched,
    compile_attention,
    compile_on_mesh,
    compile_train_step,
    gathers,
)
from deberta_jax.ops.attention.relative_position import make_relative_index

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install 'deberta_jax[tpu]'"),
    # libtpu says on import that it found no TPU.
    pytest.mark.filterwarnings("ignore"),
]


def assert_only_tables(shapes):
    """Gathered or scattered: [rows, width], or numbers; nothing with a batch."""
    assert shapes
    assert all(len(shape) <= 2 for shape in shapes), shapes


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
    assert_only_tables(gathers(compiled))


@pytest.mark.parametrize(
    "options",
    [
        {"pairwise_mask": True, "length": 512},
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
    relative_index = make_relative_index(8192, 8192, buckets=-1, max_distance=8192, clamp=False)
    compile_attention("pallas", generation, 8192, relative_index=relative_index)


@pytest.mark.parametrize(("length", "limit"), [(128, 1.1), (512, 0.6), pytest.param(2048, 0.6, marks=pytest.mark.long)])
def test_traffic_against_plain_attention(length, limit):
    """Also with what the kernel fetches again, which the compiler does not count."""
    plain, kernel = (bytes_accessed(compile_attention(name, "v5e", length)) for name in ("plain", "pallas"))
    assert kernel <= limit * plain
    assert kernel + bytes_refetched(length) <= limit * plain


@pytest.mark.long
@pytest.mark.parametrize(
    "length",
    [
        128,
        pytest.param(512, marks=pytest.mark.xfail(strict=True, reason="5.1 times")),
        pytest.param(2048, marks=pytest.mark.xfail(strict=True, reason="5.7 times")),
    ],
)
def test_xla_moves_at_most_five_times_plain_attentions_bytes(length):
    plain, xla = (compile_attention(name, "v5e", length) for name in ("plain", "xla"))
    assert bytes_accessed(xla) <= 5 * bytes_accessed(plain)
    assert all(len(shape) <= 3 for shape in gathers(xla))  # tables [rows, heads, size], no scores


@pytest.mark.long
def test_on_a_mesh_only_the_tables_gradients_are_exchanged():
    text = compile_on_mesh(512, data=2, tensor=2).as_text()
    exchanged = re.findall(r"(?:all-|collective-|reduce-scatter)\S*\(", text)
    assert len(exchanged) == 1
    assert exchanged[0].startswith("all-reduce")
    assert re.search(r"= \(bf16\[511,6,64\]\S*, bf16\[511,6,64\]\S*\) all-reduce", text)


@pytest.mark.long
@pytest.mark.parametrize(("batch", "length"), [(32, 128), (8, 512)])
def test_the_train_step_gathers_no_activation(batch, length):
    """Of v3-base: rows of embeddings and tables, and the row that the pooled head reads; nothing of the attention."""
    compiled = compile_train_step("pallas", batch, length)
    assert compiled.as_text().count("tpu_custom_call") >= 2
    whole = (batch, length, 768)  # the looked-up embeddings, and the pooled rows' gradient put in their place
    shapes = gathers(compiled)
    assert shapes.count(whole) <= 2
    assert all(len(shape) <= 2 or shape == whole for shape in shapes), shapes
