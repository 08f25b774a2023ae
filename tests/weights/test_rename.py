"""``convert --rename``: rules for the names of tensors, and what ``inspect`` shows of names that it does not know."""

import json

import numpy as np
import pytest
import safetensors.numpy

from deberta_jax.cli.main import main
from deberta_jax.errors import InputError
from deberta_jax.weights import convert, from_pretrained, inspect
from tests.weights.files import raw_config, state_of


@pytest.fixture
def own_names(tmp_path):
    """A model whose encoder and classifier another code base has named, and the same tensors by their usual names."""
    state = state_of("v3", ("pooler", "classifier"))
    ours = {
        name.replace("deberta.encoder.layer.", "net.blocks.").replace(".attention.self.", ".att."): value
        for name, value in state.items()
    }
    directory = tmp_path / "own"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(raw_config("v3", num_labels=3)))
    safetensors.numpy.save_file(ours, directory / "model.safetensors")
    return directory, state


def test_renamed_tensors_are_those_of_the_file(own_names, tmp_path, capsys):
    directory, state = own_names
    with pytest.raises(SystemExit):
        main(["convert", str(directory), str(tmp_path / "out"), "--to", "hf"])
    assert "do not add up" in capsys.readouterr().err
    rules = ["--rename", r"^net\.blocks\.=deberta.encoder.layer.", "--rename", r"\.att\.(?=\w+_proj)=.attention.self."]
    main(["convert", str(directory), str(tmp_path / "out"), "--to", "hf", *rules, "--report", str(tmp_path / "r.json")])
    printed = capsys.readouterr().out
    layers = sum(name.startswith("deberta.encoder.layer.") for name in state)
    assert f"note: renamed by '^net\\\\.blocks\\\\.=deberta.encoder.layer.': {layers} tensors" in printed
    saved = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert {name: value.tolist() for name, value in saved.items()} == {n: v.tolist() for n, v in state.items()}
    listed = {row["name"] for row in json.loads((tmp_path / "r.json").read_text())["tensors"]}
    assert "net.blocks.0.att.query_proj.weight" in listed, "the report has the names of the file"
    from_pretrained(tmp_path / "out", head="sequence-classification")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["net"], "rename 'net': give REGEX=REPL"),
        (["=x"], "rename '=x': give REGEX=REPL"),
        (["(net=x"], r"rename '\(net=x': missing \)"),
        ([r"net=\2"], "rename .*invalid group reference 2"),
        (["nothing=x"], r"rename 'nothing=x': changes no name; the names are classifier\.bias, "),
        ([r"\d+=0"], "rename gives .* one name, 'net.blocks.0"),
        ("net=x", "rename='net=x': give a list"),
    ],
)
def test_rules_that_are_refused(rules, message, own_names, tmp_path):
    with pytest.raises(InputError, match=message):
        convert(own_names[0], tmp_path / "out", to="hf", rename=rules)
    assert not (tmp_path / "out").exists()


def test_inspect_shows_every_tensor_though_some_are_unknown(write, capsys):
    state = state_of("v3", ("pooler", "classifier"))
    state["deberta.encoder.layer.0.attention.self.gate.weight"] = np.zeros((8, 2), np.float32)
    state["deberta.encoder.layer.1.intermediate.dense.bias"] = np.zeros(5, np.float32)
    del state["deberta.encoder.layer.1.output.dense.bias"]
    state["crf.start"] = np.zeros(3, np.float32)
    directory = write("odd", state, raw_config("v3", num_labels=3))
    found = inspect(directory)
    rows = {row.name: row for row in found.report.tensors}
    assert rows.keys() == state.keys()
    unknown = {name: row.reason for name, row in rows.items() if row.fate == "unknown"}
    assert unknown == {
        "deberta.encoder.layer.0.attention.self.gate.weight": "of no part of the model",
        "deberta.encoder.layer.1.intermediate.dense.bias": "is f32 [5], expected [12]",
    }
    assert rows["crf.start"].fate == "dropped"
    assert "missing: deberta.encoder.layer.1.output.dense.bias" in found.problem
    assert "ready" not in found.uses.values()
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(directory)])
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert printed.err.startswith("error: ")
    assert "layers, width 8" in printed.out
    assert "unknown deberta.encoder.layer.0.attention.self.gate.weight: of no part of the model" in printed.out
    with pytest.raises(InputError, match="do not add up"):
        from_pretrained(directory)
