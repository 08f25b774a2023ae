"""The state that a real run of this package leaves is a source like any other."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from deberta_jax.cli.main import main
from deberta_jax.weights import convert, load


@pytest.fixture
def run_directory(trained) -> Path:
    """Of a finished fine-tuning, the one that the tests of training share."""
    return trained.directory


def stored_params(state: Path):
    """By Orbax alone, as numpy arrays."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(state).item_metadata.tree
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(state, args=ocp.args.PyTreeRestore(restore_args=arguments))["params"]


@pytest.mark.parametrize("place", ["state", "state/STEP", "state/STEP/state", "a run that has no best model yet"])
def test_a_training_state_converts_with_a_full_account(place, run_directory, tmp_path):
    step = next(path for path in (run_directory / "state").iterdir() if path.name.isdigit())
    source = run_directory / place.replace("STEP", step.name)
    if not place.startswith("state"):
        source = tmp_path / "run"
        shutil.copytree(run_directory, source, ignore=shutil.ignore_patterns("model.safetensors"))
    expected = stored_params(step / "state")
    report = convert(source, tmp_path / "out", to="hf")
    assert report.parts == ("pooler", "classifier")
    assert report.count("loaded") == len(report.tensors)
    assert report.initialised == ()
    model, params, _ = load(tmp_path / "out", "sequence-classification")
    assert model.config.id2label == ("neg", "pos")
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, expected))


def test_a_training_state_without_its_optimizer_goes_to_orbax_too(run_directory, tmp_path, capsys):
    main(["convert", str(run_directory / "state"), str(tmp_path / "out"), "--to", "orbax"])
    assert "0 dropped" in capsys.readouterr().out
    size = lambda folder: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size(tmp_path / "out") < 0.6 * size(run_directory / "state")  # AdamW keeps two more of every parameter
    main(["inspect", str(run_directory / "state"), "--json"])
    uses = json.loads(capsys.readouterr().out)["uses"]
    assert uses["sequence-classification"] == uses["encoder"] == "ready"
