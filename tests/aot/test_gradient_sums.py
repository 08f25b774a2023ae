"""The dtype in which chips add up gradients, in steps of v3-base compiled for eight v5e on every kind of mesh."""

import importlib.util
import math

import jax
import pytest

from benchmarks.tpu_aot import devices
from deberta_jax.planning.hlo import parse_hlo
from deberta_jax.planning.programs import make_program, objective_of
from deberta_jax.planning.request import make_request
from deberta_jax.planning.targets import target_of
from deberta_jax.presets import PRESETS
from deberta_jax.training.experiment import RunOptions
from tests.planning.exchanges import added_up

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install 'deberta_jax[tpu]'"),
    # libtpu says on import that it found no TPU.
    pytest.mark.filterwarnings("ignore"),
]
LENGTH, CONFIG = 64, PRESETS["deberta-v3-base"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_gradients_are_added_up_in_one_dtype(mesh, dtype):
    names = ("mesh_data", "mesh_fsdp", "mesh_tensor")
    runtime = RunOptions(**dict(zip(names, mesh, strict=True)), attention="pallas", gradient_dtype=dtype)
    request = make_request(
        "finetune", CONFIG, target_of("v5e:2x4"), batch_size=64, length=LENGTH, dtype="bfloat16", runtime=runtime
    )
    sums = added_up(parse_hlo(make_program(request, devices("v5e")).compiled.as_text()), request)
    # Each chip's gradients of the projected tables of positions [R,N,H], before they become those of kernels, have the
    # dtype of the computation.
    heads, size = CONFIG.num_attention_heads // mesh[2], CONFIG.hidden_size // CONFIG.num_attention_heads
    sums = [a for a in sums if a.dims != (2 * LENGTH - 1, heads, size)]
    elements = {"f32": 0, "bf16": 0}
    for a in sums:
        elements[a.dtype] += math.prod(a.dims)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(objective_of(request).parameters.shapes))
    vectors = 0.01 * parameters  # biases, LayerNorms, and the table of relative positions before its projection
    others = {"float32": "bf16", "bfloat16": "f32"}[dtype]
    assert elements[others] <= (0 if dtype == "float32" else vectors), elements
