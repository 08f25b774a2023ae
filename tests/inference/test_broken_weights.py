"""Weights that are NaN or infinite: the model is refused by the name of the tensor, or answers null where asked."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

import deberta_jax
from deberta_jax.cli.main import main
from deberta_jax.errors import InputError

TENSOR = "deberta.encoder.layer.0.output.dense.bias"


@pytest.fixture
def broken(trained, tmp_path):
    """A copy of the trained model in which one number is infinite."""
    directory = tmp_path / "broken"
    shutil.copytree(trained.directory, directory, ignore=shutil.ignore_patterns("checksums.json", "state"))
    tensors = dict(safetensors.numpy.load_file(directory / "model.safetensors"))
    tensors[TENSOR] = tensors[TENSOR].copy()
    tensors[TENSOR][1] = np.inf
    safetensors.numpy.save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def test_the_commands_name_the_tensor(broken, trained, tmp_path, capsys):
    table = str(trained.task.home / "eval.csv")
    for arguments in (
        ["evaluate", "--model", str(broken), "--data", table],
        ["predict", "--model", str(broken), "--input", table, "--output", str(tmp_path / "out.jsonl")],
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert f"NaN or infinity in {TENSOR};" in line
    assert not (tmp_path / "out.jsonl").exists()


def test_null_is_written_where_asked(broken, trained, tmp_path):
    table, out = trained.task.home / "eval.csv", tmp_path / "out.jsonl"
    main(["predict", "--model", str(broken), "--input", str(table), "--output", str(out), "--non-finite", "null"])
    rows = [json.loads(line, parse_constant=pytest.fail) for line in out.read_text().splitlines()]
    assert len(rows) == len(table.read_text().splitlines()) - 1
    assert all(row == {"label": None, "probabilities": None} for row in rows)


def test_pipelines_and_models_are_refused_too(broken):
    with pytest.raises(InputError, match=TENSOR):
        deberta_jax.pipeline("text-classification", broken)
    (answer,) = deberta_jax.pipeline("text-classification", broken, non_finite="null")("A text.")
    assert answer == {"label": None, "score": None}
    with pytest.raises(InputError, match=TENSOR):
        deberta_jax.from_pretrained(broken, "sequence-classification")
    _, params = deberta_jax.from_pretrained(broken, "sequence-classification", allow_non_finite=True)
    assert np.isinf(params["deberta"]["encoder"]["layers"]["output"]["dense"]["bias"][0, 1])
