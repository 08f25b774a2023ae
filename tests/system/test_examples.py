"""Every file of ``examples/`` runs alone, warns of nothing, and prints what it shows."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.made import NOTHING_DEPRECATED

pytestmark = pytest.mark.system

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

_EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}

# file -> pattern of what it prints, and environment variables
RUNS = {
    "continued_pretraining.py": (r"loss before \d\.\d\d, after [0-3]\.\d\d\nguesses: ", {}),
    "distillation_lora_sweep.py": (r"teacher: accuracy \S+\nlora +seeds +accuracy .*\n[04] +1 .*\n[04] +1 ", {}),
    "recipe_dry_run.py": (r'"steps": 6, .*"warmup_steps": 500, .*"published_score": "accuracy 0.91", "recipe"', {}),
    "contrastive_head.py": (r"loss 2\.\d\d -> [01]\.\d\d; equal after reloading: True", {}),
    "convert_and_rename.py": (
        r"32 tensors of 42 have names of their own.*\nrenamed: 42 tensors loaded, 0 dropped\n"
        r"same weights: 0\.0; bf16 passes at 0\.1: True\nlogits \(1, 2\)",
        {},
    ),
    "nnx_jvp_vmap_sharding.py": (
        r"NNX: equal True\njvp: equal to the gradient's product True\nvmap: \(3, 8, 2\) logits of three models\n"
        r"sharding: \(2, 32, 64\) on 8 devices, \(2, 16, 32\) on each, equal True",
        _EIGHT,
    ),
    "typed_script.py": (
        r"tokens \d+ to \d+ of \d+: .*\npipeline: .*, score 0\.\d+\nlargest .* saving: 0\.0\n",
        {},
    ),
    "attention_bias.py": (
        r"bias changes states by [1-9].*\nbias and modifier agree: True\n.*shape \(4, 23\)\n.*reloaded: True\n"
        r"an own function changes states by [1-9]",
        {},
    ),
    "attention_maps.py": (
        r"embeddings \(4, 64\).*\n3 layers of weights \(4, 4, \d+, \d+\)\nmaps are in .*\n"
        r"without head 2 .* by 0\.[1-9]",
        {},
    ),
    "run_stablehlo.py": (r"programs for \(16, 32\) tokens, logits \(2, 3\), equal: True\n", {}),
    "training_loop.py": (r"step 20: loss 0\.\d{4}\nrestored the state of step 20 on 1 devices", {}),
}


def printed(name: str, environment: dict[str, str]) -> str:
    """What an example prints, in a process of its own."""
    clean = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    found = subprocess.run(
        [sys.executable, EXAMPLES / name],
        env=clean | {"PYTHONWARNINGS": NOTHING_DEPRECATED} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


SLOW = {"distillation_lora_sweep.py", "nnx_jvp_vmap_sharding.py", "training_loop.py"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in sorted(RUNS)])
def test_an_example_prints_what_it_shows(name):
    pattern, environment = RUNS[name]
    assert re.search(pattern, printed(name, environment))


@pytest.mark.slow
def test_the_loop_has_the_same_losses_on_eight_devices():
    alone, eight = printed("training_loop.py", {}), printed("training_loop.py", _EIGHT)
    losses = lambda text: [float(number) for number in re.findall(r"loss (\d\.\d+)", text)]
    assert len(losses(alone)) == 4
    assert losses(eight) == pytest.approx(losses(alone), abs=2e-4)
    assert "on 8 devices" in eight


def test_every_example_is_run_and_short():
    files = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert sorted(RUNS) == files
    assert all(len((EXAMPLES / name).read_text().splitlines()) <= 60 for name in files)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.ipynb")))
def test_the_cells_of_a_notebook_run(name, tmp_path):
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 4
    assert not any(cell.get("outputs") for cell in notebook["cells"]), "stored outputs are not compared with anything"
    done = subprocess.run(
        [sys.executable, "-c", "\n\n".join(cells)],
        cwd=tmp_path,
        env=os.environ
        | {"MPLBACKEND": "agg", "PYTHONPATH": str(EXAMPLES.parent), "PYTHONWARNINGS": NOTHING_DEPRECATED},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_there_are_notebooks():
    assert len(list(EXAMPLES.glob("*.ipynb"))) >= 2
