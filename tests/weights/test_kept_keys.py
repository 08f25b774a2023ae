"""Keys of config.json that no model reads are there again when a loaded model is saved, whatever happened between."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from deberta_jax.cli.main import main
from deberta_jax.training.experiment import Finetune
from deberta_jax.training.finetuning import plan_finetune
from deberta_jax.weights import convert, from_pretrained, load, resize_vocabulary, save_pretrained
from tests.made import TINY, binary_files, weighted_model
from tests.weights.files import raw_config, state_of

PARTS = ("pooler", "classifier")
KEYS = {
    "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0.1"},
    "sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid",
    "tasks": ["a", "b"],
    "tokenizer_class": "DebertaV2Tokenizer",
    "é\ud800": "half a pair",
}


@pytest.fixture
def source(write):
    return write("source", state_of("v3", PARTS), raw_config("v3", num_labels=3, **KEYS))


def kept(directory: Path) -> dict:
    contents = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return {name: value for name, value in contents.items() if name in KEYS}


def test_through_loading_and_saving(source, tmp_path):
    for head in ("encoder", "sequence-classification"):
        model, params = from_pretrained(source, head)
        save_pretrained(tmp_path / head, model, params)
        assert kept(tmp_path / head) == KEYS
        again, _ = from_pretrained(tmp_path / head, head)
        assert again.config == model.config
        assert again.config.extra == model.config.extra


def test_through_conversion_there_and_back(source, tmp_path):
    convert(source, tmp_path / "orbax", to="orbax", head="sequence-classification", id2label=["x", "y", "z"])
    convert(tmp_path / "orbax", tmp_path / "hf", to="hf", layout="microsoft")
    assert kept(tmp_path / "orbax") == kept(tmp_path / "hf") == KEYS


def test_through_another_vocabulary_and_new_labels(source, tmp_path):
    model, params, _ = load(source, "sequence-classification", num_labels=5, new_head=jax.random.key(0))
    config, params = resize_vocabulary(model.config, params, 33, jax.random.key(0))
    config = dataclasses.replace(config, cls_dropout=0.5)
    save_pretrained(tmp_path / "out", type(model)(config), params)
    assert kept(tmp_path / "out") == KEYS


def test_through_a_v1_model_that_turns_out_to_be_one_of_v2(write, tmp_path):
    """The file says v1 and holds key biases; its ``position_buckets``, which v1 ignores, must not come back."""
    state = state_of("v2")
    directory = write("m", state, raw_config("v1", position_buckets=8, **KEYS))
    model, params = from_pretrained(directory)
    assert model.config.model_type == "deberta-v2"
    save_pretrained(tmp_path / "out", model, params)
    assert kept(tmp_path / "out") == KEYS
    assert json.loads((tmp_path / "out" / "config.json").read_text())["position_buckets"] == -1


def test_in_the_output_of_fine_tuning(tmp_path):
    """The model directory that a run writes, before any step of it."""
    base = weighted_model(tmp_path / "base", dataclasses.replace(TINY, extra=KEYS))
    files = binary_files(tmp_path)
    options = {"model": str(base), "output": str(tmp_path / "run"), "text": ("sentence",), "label": "kind", **files}
    _, job = plan_finetune(Finetune(max_length=16, batch_size=8, **options))
    job.save_best(job.objective.initial_params(None))
    assert kept(tmp_path / "run") == KEYS
    contents = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert contents["id2label"] == {"0": "neg", "1": "pos"}


def test_inspect_names_them(source, capsys):
    main(["inspect", str(source)])
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if "other keys" in line)
    assert "sentence_transformers, sbert_ce_default_activation_function, tasks, é\\ud800 (in config.json" in line
    assert "tokenizer_class" not in line
    main(["inspect", str(source), "--json"])
    assert json.loads(capsys.readouterr().out)["report"]["config"]["tasks"] == ["a", "b"]
