"""Train steps compiled for GPUs that are not there: what they hold, compute and exchange, and what they must not do."""

import math

import jax
import pytest

from deberta_jax.planning.cards import CARDS
from deberta_jax.planning.child import devices
from deberta_jax.planning.costs import count
from deberta_jax.planning.hlo import parse_hlo
from deberta_jax.planning.planner import make_plan
from deberta_jax.planning.programs import make_program, objective_of
from deberta_jax.planning.request import make_request
from deberta_jax.planning.targets import target_of
from deberta_jax.presets import PRESETS
from deberta_jax.training.experiment import RunOptions
from deberta_jax.training.flops import forward_flops
from tests.aot_gpu.needs import GPU_COMPILER

pytestmark = GPU_COMPILER
SMALL = PRESETS["deberta-v3-xsmall"].replace(num_hidden_layers=2, vocab_size=2000)
ROWS, LENGTH = 4, 256  # of a GPU


def request_of(topology, config, **mesh):
    target, runtime = target_of(topology), RunOptions(attention="xla", **mesh)
    rows = target.chips * ROWS
    return make_request("finetune", config, target, batch_size=rows, length=LENGTH, dtype="bfloat16", runtime=runtime)


def step_of(topology, **mesh):
    request = request_of(topology, SMALL, **mesh)
    made = make_program(request, devices(request))
    program = parse_hlo(made.compiled.as_text())
    return request, made, program, count(program, request.mesh, hosts=request.target.slices)


@pytest.mark.parametrize("name", CARDS)
def test_every_card_is_compiled_for(name):
    request, made, _, costs = step_of(f"{name}:1", mesh_data=1)
    memory = made.compiled.memory_analysis()
    assert sum(made.held.values()) == pytest.approx(memory.argument_size_in_bytes, rel=1e-3)
    expected = 3 * forward_flops(SMALL, request.tokens, LENGTH)
    assert expected <= costs.flops <= 1.3 * expected


def test_two_hosts_exchange_gradients_and_no_activations():
    request, made, program, costs = step_of("h100:4x2", mesh_data=2, mesh_fsdp=4)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(objective_of(request).parameters.shapes))
    assert made.held["parameters"] < 1.1 * 4 * parameters / 4
    # Each of the four GPUs of a host sends its quarter of the gradients. The tables of relative positions are shared by
    # all layers, and their gradients are added up in each.
    shared = request.config.num_hidden_layers * 2 * 2 * SMALL.position_buckets * SMALL.hidden_size
    sent = 4 * costs.network_sent / 4
    assert parameters <= sent <= 1.05 * (parameters + shared)
    activation = ROWS * LENGTH * SMALL.hidden_size
    for computation, i, _ in program.executed():
        for _, part in ((computation, i), *program.inside(i)):
            if part.opcode in ("gather", "scatter") and "attention/self" in part.op_name:
                assert all(math.prod(array.dims) < activation for array in part.arrays), (part.name, part.arrays)


def test_what_does_not_fit_a_card_is_said():
    """v2-xxlarge with Adam needs 25 GB for its state alone: a card of 24 GB is refused, eight A100 share it."""
    plan = make_plan(request_of("l4:1", PRESETS["deberta-v2-xxlarge"], mesh_data=1))
    assert plan.fits is False
