"""Two processes load a model, each its own shards, and save it; what is read and written is the file's."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deberta_jax.models import DebertaForSequenceClassification
from deberta_jax.presets import PRESETS
from deberta_jax.sharding import make_mesh, sharded
from tests.made import saved_model, weighted_model
from tests.training.processes import port

PROGRAM = Path(__file__).with_name("gathered_program.py")


def run_two(source: Path, target: Path, mesh: str, block: int = 4096) -> list[str]:
    """What each of two processes, with one device, prints."""
    coordinator = f"localhost:{port()}"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(source), str(target), coordinator, str(i), mesh, str(block)],
            env={**os.environ, "XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        told = [process.communicate(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], [err[-2000:] for _, err in told]
    return [out.splitlines()[-1] for out, _ in told]  # gloo prints lines of its own


@pytest.mark.system
@pytest.mark.parametrize(
    "mesh", ["1,2,1", *(pytest.param(mesh, marks=pytest.mark.long) for mesh in ("1,1,2", "2,1,1"))]
)
def test_two_processes_write_the_bytes_that_they_read(tmp_path, mesh):
    source = weighted_model(tmp_path / "source")
    run_two(source, tmp_path / "target", mesh)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("target", "source"))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.system
def test_a_weight_that_one_process_finds_broken_is_refused_by_all(tmp_path):
    source = weighted_model(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    name = "deberta.encoder.layer.1.intermediate.dense.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][:, -1] = np.nan  # inputs of the last columns: the second process's part
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    (source / "checksums.json").unlink()
    for out in run_two(source, tmp_path / "target", "1,2,1"):
        assert out.startswith("refused: ")
        assert name in out


@pytest.mark.long
def test_v3_base_takes_the_memory_of_a_processs_own_shards(tmp_path):
    config = PRESETS["deberta-v3-base"]
    source = saved_model(tmp_path / "source", DebertaForSequenceClassification(config))
    for out in run_two(source, tmp_path / "target", "1,2,1", block=128 << 20):
        grown, own, whole = (int(number) for number in out.split()[1::2])
        assert own < 0.51 * whole
        assert grown <= 1.3 * own + 300e6, out


@pytest.mark.parametrize("axes", [("vocab", "embed"), (None, "embed"), (None, None), ("batch", None)])
def test_each_part_of_an_array_reaches_its_device(axes):
    from deberta_jax.sharding import tree_shardings

    sharding = tree_shardings({"x": axes}, make_mesh(2, 2, 2))["x"]
    whole, asked = np.arange(8 * 12, dtype=np.float32).reshape(8, 12), []
    found = sharded(whole.shape, sharding, lambda index: asked.append(index) or whole[index])
    np.testing.assert_array_equal(found, whole)
    assert found.sharding == sharding
    assert asked == [(slice(0, 8), slice(0, 12))]
    assert found.sharding.is_equivalent_to(jax.device_put(whole, sharding).sharding, 2)
