"""What the package costs to import, what is in its wheel, and its public names."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import deberta_jax

ROOT = Path(__file__).resolve().parents[1]

NAMES = [
    "DebertaConfig",
    "PRESETS",
    "InputError",
    "from_pretrained",
    "save_pretrained",
    "init_params",
    "load_tokenizer",
    "train_tokenizer",
    "pipeline",
    "losses",
    "DebertaEncoder",
    "DebertaForMaskedLM",
    "DebertaForSequenceClassification",
    "DebertaForTokenClassification",
    "DebertaForQuestionAnswering",
    "DebertaForMultipleChoice",
    "DebertaForReplacedTokenDetection",
]


def test_public_names():
    assert [name for name in NAMES if not hasattr(deberta_jax, name)] == []
    assert len(deberta_jax.PRESETS) > 5


def test_importing_prints_nothing_starts_no_device_and_brings_no_torch():
    script = (
        "import sys, json, logging\n"
        "import deberta_jax\n"
        "assert 'jax' not in sys.modules\n"
        "for name in deberta_jax.__all__: getattr(deberta_jax, name)\n"
        "assert 'jax' in sys.modules\n"
        "assert logging.root.handlers == []\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.__stderr__)\n"
        "import jax; jax.devices()\n"
    )
    # With a platform that does not exist the first use of a device fails: the script's own, and none before it.
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "none_such"},
    )
    assert found.stdout == ""
    modules, *failure = found.stderr.splitlines()
    assert failure[-1].startswith("RuntimeError: Unable to initialize backend 'none_such'"), found.stderr
    assert [line for line in failure if "deberta_jax" in line] == []
    heavy = {"torch", "transformers", "huggingface_hub", "tensorflow"}
    heavy |= {"matplotlib", "pandas", "orbax", "pyarrow"}
    assert heavy & {name.split(".")[0] for name in json.loads(modules)} == set()


def test_training_and_writing_orbax_install_no_handler():
    """The import of Orbax logs, and absl answers the first message of a program with a handler on the root logger."""
    script = (
        "import logging, sys\n"
        "import deberta_jax.training.loop, deberta_jax.weights.orbax_writer\n"
        "assert 'orbax' in sys.modules and 'matplotlib' not in sys.modules\n"
        "assert logging.root.handlers == [], logging.root.handlers\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_python_dash_m_is_the_command_line():
    found = subprocess.run([sys.executable, "-m", "deberta_jax", "--version"], capture_output=True, text=True)
    assert found.stdout == f"{deberta_jax.__version__}\n", found.stderr


def test_the_wheel_holds_the_package_alone(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"deberta_jax", f"deberta_jax-{deberta_jax.__version__}.dist-info"}
    assert "deberta_jax/py.typed" in names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "deberta_jax").rglob("*.py")}
    assert sources == {name for name in names if name.endswith(".py")}
    metadata = zipfile.ZipFile(wheel).read(f"deberta_jax-{deberta_jax.__version__}.dist-info/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata


@pytest.mark.parametrize("arguments", [["-m", "deberta_jax.cli.main", "--help"], ["-m", "train", "--help"]])
def test_front_doors(arguments):
    found = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("usage: deberta-jax COMMAND")
    assert found.stderr == ""
