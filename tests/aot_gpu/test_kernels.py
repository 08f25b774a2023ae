"""Attention kernels compiled for GPUs that are not there: what they need of each card."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu_aot import Case, compile_case
from deberta_jax.planning.cards import CARDS
from tests.aot_gpu.needs import GPU_COMPILER

pytestmark = GPU_COMPILER
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "gpu_aot.json"
SPILLS = {"forward": 16, "backward_query": 256, "backward_key": 256}  # bytes that a thread may keep in memory


@pytest.mark.parametrize("card", ["a100-80", "l4", "h100", "b200"])
def test_kernels_fit_the_card(card):
    """A forward and two backward kernels, with packed rows and dropout, as in training."""
    found = compile_case(Case(card))
    kernels = {kernel["name"].removeprefix("disentangled_attention_"): kernel for kernel in found["kernels"]}
    assert kernels.keys() == SPILLS.keys()
    major, minor = CARDS[card].capability
    hopper = (major, minor) == (9, 0)
    for name, kernel in kernels.items():
        assert kernel["instructions"] == (["wgmma.mma_async", "cp.async.bulk.tensor"] if hopper else ["mma.sync"])
        assert kernel["architecture"].removesuffix("a") == f"sm_{major}{minor}"
        assert kernel["spilled_bytes"] <= SPILLS[name], (name, kernel)
        assert kernel["shared_bytes"] <= CARDS[card].shared - 1024
        assert kernel["registers"] * 128 <= 65536
        assert not hopper or 2 * (kernel["shared_bytes"] + 1024) <= CARDS[card].shared  # two on a multiprocessor
    assert recorded(card) == pytest.approx(found["temporaries"], rel=0.05)


def recorded(card):
    programs = json.loads(RESULTS.read_text())["programs"]
    like = Case(card).__dict__
    (program,) = [program for program in programs if all(program[name] == value for name, value in like.items())]
    return program["temporaries"]


def test_memory_is_linear_in_the_length():
    assert compile_case(Case("h100", length=2048))["temporaries"] <= 4.5 * recorded("h100")
