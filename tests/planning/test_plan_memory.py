"""A plan's bytes against the memory that a real process takes for the step, on one CPU."""

import json
import os
import subprocess
import sys

import pytest

# Prints predicted bytes (arguments and temporaries) and the growth of the process' peak from just before the state.
_RUN = """
import dataclasses, gc, json, sys
import jax, numpy as np
from pathlib import Path
from deberta_jax.planning.targets import target_of
from deberta_jax.planning.programs import objective_of, request_mesh
from deberta_jax.planning.request import make_request
from deberta_jax.presets import PRESETS
from deberta_jax.sharding import global_batch
from deberta_jax.training.experiment import RunOptions
from deberta_jax.training.objective import prepare_step
from deberta_jax.training.step import compile_step

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))

job, rows, length, remat = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
config = dataclasses.replace(PRESETS["deberta-v3-base"], vocab_size=30000, num_hidden_layers=4)
request = make_request(job, config, target_of("cpu:1"), batch_size=rows, length=length, dtype="float32",
                       runtime=RunOptions(mesh_data=1, remat=remat))
mesh = request_mesh(request, jax.devices())
prepared = prepare_step(objective_of(request), mesh, 10)
batch = {name: np.zeros(shape, dtype) for name, (shape, dtype) in request.batch.items()}
program = compile_step(prepared.step, prepared.state, prepared.shardings, batch, mesh)
memory = program.memory_analysis()
gc.collect()
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
state = jax.tree.map(lambda a, s: jax.device_put(np.zeros(a.shape, a.dtype), s), prepared.state, prepared.shardings)
for _ in range(2):
    state, metrics = program(state, global_batch(batch, mesh))
    jax.block_until_ready((state, metrics))
print(json.dumps([memory.argument_size_in_bytes + memory.temp_size_in_bytes, (kilobytes("VmHWM") - before) * 1024]))
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("job", "rows", "length", "remat"),
    [("finetune", 16, 128, "none"), ("finetune", 4, 512, "full"), ("mlm", 16, 128, "dots")],
)
def test_predicted_memory_is_what_the_process_takes(job, rows, length, remat):
    run = subprocess.run(
        [sys.executable, "-c", _RUN, job, str(rows), str(length), remat],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"XLA_FLAGS": ""},  # one device, not those of the tests
    )
    predicted, measured = json.loads(run.stdout.splitlines()[-1])
    assert measured == pytest.approx(predicted, rel=0.15)
