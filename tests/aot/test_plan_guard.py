"""The step that training runs, of v3-base compiled for eight v5e that share the parameters: what it must not do."""

import importlib.util
import math

import jax
import pytest

from benchmarks.tpu_aot import devices
from benchmarks.tpu_peers import in_a_model
from deberta_jax.models import attention
from deberta_jax.planning.costs import count
from deberta_jax.planning.hlo import parse_hlo
from deberta_jax.planning.kernels import kernel_cost
from deberta_jax.planning.programs import make_program, objective_of
from deberta_jax.planning.request import make_request
from deberta_jax.planning.targets import target_of
from deberta_jax.presets import PRESETS
from deberta_jax.training.experiment import RunOptions
from tests.planning.exchanges import unexpected

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install 'deberta_jax[tpu]'"),
    # libtpu says on import that it found no TPU.
    pytest.mark.filterwarnings("ignore"),
]
CHIPS, WIDTH, LAYERS = 8, 768, 12
ROWS = {128: 32, 512: 8}  # of a chip


def step_of(length):
    runtime = RunOptions(mesh_data=1, mesh_fsdp=CHIPS, attention="pallas")
    request = make_request(
        "finetune",
        PRESETS["deberta-v3-base"],
        target_of("v5e:2x4"),
        batch_size=CHIPS * ROWS[length],
        length=length,
        dtype="bfloat16",
        runtime=runtime,
    )
    made = make_program(request, devices("v5e"))
    program = parse_hlo(made.compiled.as_text())
    return request, made, program, count(program, request.mesh, kernel_cost)


@pytest.mark.parametrize("length", [128, 512])
def test_the_train_step(length, monkeypatch):
    request, made, program, costs = step_of(length)
    own = ROWS[length] * length * WIDTH  # numbers of a chip's activation

    # The fused kernels, once a layer each.
    assert costs.kernels == {"disentangled_attention_forward": LAYERS, "disentangled_attention_backward": LAYERS}

    # In attention only tables [rows, width] are gathered, scattered or sliced; nothing with the batch.
    for computation, i, _ in program.executed():
        for _, part in ((computation, i), *program.inside(i)):
            if part.opcode in ("gather", "scatter", "dynamic-slice") and "attention/self" in part.op_name:
                assert all(math.prod(a.dims) < own for a in part.arrays), (part.name, part.arrays)

    # A chip keeps its share of the parameters, gathers no more than a layer of one at a time, and no activation.
    whole = sum(leaf.size for leaf in jax.tree.leaves(objective_of(request).parameters.shapes))
    assert made.held["parameters"] < 1.02 * 4 * whole / CHIPS
    assert not unexpected(program, request)

    # Beside the same step with plain attention.
    monkeypatch.setattr(attention, "disentangled_attention", in_a_model("plain"))
    *_, beside = step_of(length)
    assert not beside.kernels
    assert costs.hbm_bytes <= 1.5 * beside.hbm_bytes, (costs.hbm_bytes, beside.hbm_bytes)
