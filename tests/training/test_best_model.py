"""A finished run whose best model was deleted is not called finished: it is made again, or a line says what to do."""

import json
import os
import shutil

import numpy as np
import pytest
import safetensors.numpy

from deberta_jax.cli.main import main
from tests.made import refused
from tests.weights.test_training_state import stored_params


@pytest.fixture
def finished(trained, tmp_path):
    return shutil.copytree(trained.directory, tmp_path / "run")


def last_step(run):
    return max(int(path.name) for path in (run / "state").iterdir() if path.name.isdigit())


def with_best_at(run, step):
    """Changes the record of the run: its best model is that of this step."""
    path = run / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": step}))
    state = run / "state" / str(last_step(run))
    record = state / "record" / "metadata"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"best_step": step}))
    (state / "checksums.json").unlink()


def test_a_model_of_an_earlier_step_is_lost(task, finished, capsys):
    with_best_at(finished, 1)
    state = last_step(finished)
    for damage, words in (
        (lambda: os.truncate(finished / "model.safetensors", 40_000), "model.safetensors is cut short"),
        (lambda: (finished / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda: (finished / "result.json").unlink(), "model.safetensors is missing"),
        (lambda: (finished / "checksums.json").unlink(), "it has no weights"),
        (lambda: (finished / "config.json").unlink(), "config.json is missing"),
    ):
        damage()
        line = refused(task.arguments(finished), capsys)
        assert f"its best model, of step 1, is not complete ({finished}: {words})" in line
        assert f"only the state of step {state} is there to make it from" in line
        assert f"delete {finished} to train again" in line


@pytest.mark.slow
def test_the_model_of_the_last_step_is_made_again(task, finished, capsys):
    with_best_at(finished, last_step(finished))
    (finished / "model.safetensors").unlink()
    evaluation = json.loads((finished / "evaluation.json").read_text())
    main(task.arguments(finished))
    assert "the best model is written again from the state of step" in capsys.readouterr().err
    found = safetensors.numpy.load_file(finished / "model.safetensors")
    params = stored_params(finished / "state" / str(last_step(finished)) / "state")
    expected = params["deberta"]["embeddings"]["word_embeddings"]["embedding"]
    np.testing.assert_array_equal(found["deberta.embeddings.word_embeddings.weight"], expected)
    assert json.loads((finished / "evaluation.json").read_text()).keys() == evaluation.keys()
    main(task.arguments(finished))
    assert "this run has finished" in capsys.readouterr().err


def test_a_flipped_bit_is_refused_by_the_commands_with_a_full_check(task, finished, capsys):
    path = finished / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 8
    path.write_bytes(data)
    rows = str(task.home / "eval.csv")
    model = ["--model", str(finished), "--text", "sentence", "--check", "full"]
    commands = (["evaluate", *model, "--data", rows, "--label", "kind"], ["predict", *model, "--input", rows])
    for command in (*commands, ["verify", finished], ["convert", finished, finished.parent / "out", "--to", "hf"]):
        line = refused([*command, *(["--output", finished.parent / "o"] if command[0] == "predict" else [])], capsys)
        assert f"error: {finished}: damaged: model.safetensors has other bytes (1 of 16 blocks)" in line
    assert sorted(each.name for each in finished.parent.iterdir()) == ["run"]
