"""What libtpu makes of the TPU kernel, read from the programs that it writes while it compiles. No TPU was used."""

import importlib.metadata
import importlib.util
import json

import pytest

from benchmarks.tpu_cycles import BATCHES, RESULTS
from benchmarks.tpu_schedule import CompiledProgram, compile_with_dump, count_operations

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install 'deberta_jax[tpu]'"),
    # libtpu says on import that it found no TPU.
    pytest.mark.filterwarnings("ignore"),
]
PARTS = ("forward", "backward")


@pytest.fixture(scope="module", params=[128, 512])
def compiled(request, tmp_path_factory):
    """Returns the length, and the folder with the programs of the kernels of this length on a v5e."""
    folder = tmp_path_factory.mktemp(f"v5e-{request.param}")
    case = {"implementation": "pallas", "generation": "v5e", "length": request.param, "batch": BATCHES[request.param]}
    compile_with_dump("compile_attention", folder, **case)
    return request.param, folder


def test_rows_are_shifted_by_the_strided_roll(compiled):
    """Each roll of a register serves both heads of a program; the backward gathers where it shifts back.

    Mosaic has no roll for that. A program has four rows of one strip of 128 tokens, or one row of four strips.
    """
    length, folder = compiled
    forward, backward = (count_operations(folder)[f"disentangled_attention_{part}"] for part in PARTS)
    rows, strips = {128: (4, 1), 512: (1, 4)}[length]
    tiles = rows * strips**2
    assert forward["tpu.dynamic_rotate"] == backward["tpu.dynamic_rotate"] == 2 * tiles
    assert forward.get("tpu.dynamic_gather", 0) == 0
    assert backward["tpu.dynamic_gather"] == 2 * tiles


def test_the_kernels_take_the_cycles_that_are_recorded(compiled):
    """With the recorded compiler, at most 5 % more; benchmarks/tpu_cycles.py records."""
    length, folder = compiled
    recorded = json.loads(RESULTS.read_text())
    if recorded["libtpu"] != importlib.metadata.version("libtpu"):
        pytest.skip(f"the cycles are recorded for libtpu {recorded['libtpu']}")
    (row,) = (
        row
        for row in recorded["rows"]
        if row["kind"] == "attention"
        and (row["attention"], row["generation"], row["length"]) == ("pallas", "v5e", length)
        and (row["part"], row["dropout"]) == ("both", 0.0)
    )
    kernels = CompiledProgram(folder).kernels
    for part in PARTS:
        name = f"disentangled_attention_{part}"
        (schedule,) = (schedule for key, (schedule, _) in kernels.items() if key.startswith(name))
        (limit,) = (k["programs"] * k["cycles of a program"] for k in row["kernels"] if k["kernel"].startswith(name))
        assert schedule.programs * schedule.cycles <= 1.05 * limit, (part, schedule)
