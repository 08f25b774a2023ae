"""LoRA: what is trained, what is saved, and that the files say the same as the run."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import deberta_jax
from deberta_jax.sharding import make_mesh
from deberta_jax.training import finetune_data
from deberta_jax.training.lora import find_kernels, init_lora, lora_parameters, merge
from deberta_jax.training.optimizers import split_frozen
from deberta_jax.training.state import parameters_of
from tests.made import TINY, rows, start, stdout_of, weighted_model, write_table


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of rank 3 on a model with weights: (the model, the run)."""
    home = tmp_path_factory.mktemp("lora")
    base = weighted_model(home / "base")
    train = write_table(home / "train.csv", ("text", "label"), rows(96, seed=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune_data, "mesh_of", lambda runtime: make_mesh(devices=jax.devices()[:1]))
        stdout_of(
            [
                "finetune",
                "--model",
                str(base),
                "--train",
                str(train),
                "--eval",
                str(train),
                "--output",
                str(home / "run"),
                "--lora",
                "3",
                "--lora-alpha",
                "6",
                "--lora-targets",
                "*/query_proj/kernel",
                "*/attention/output/dense/kernel",
                "*/intermediate/dense/kernel",
                "--epochs",
                "4",
                "--batch-size",
                "16",
                "--learning-rate",
                "1e-2",
                "--max-length",
                "16",
            ]
        )
    return base, home / "run"


def test_the_saved_model_is_the_base_plus_the_adapter(run):
    """In PyTorch's layout, with numpy: W + alpha / rank * B A."""
    base, after = (load_file(directory / "model.safetensors") for directory in run)
    adapter = load_file(run[1] / "adapter" / "adapter_model.safetensors")
    config = json.loads((run[1] / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"], config["task_type"]) == (3, 6.0, "LORA", "SEQ_CLS")
    assert config["modules_to_save"] == ["pooler", "classifier"]
    changed = 0
    for name, before in base.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in adapter:
            a, b = adapter[f"{stem}.lora_A.weight"], adapter[f"{stem}.lora_B.weight"]
            assert a.shape == (3, before.shape[1])
            assert b.shape == (before.shape[0], 3)
            update = 2.0 * (b.astype(np.float64) @ a.astype(np.float64))
            assert np.abs(update).max() > 1e-3
            np.testing.assert_allclose(after[name], before + update, atol=1e-5)
            changed += 1
        elif name.startswith(("pooler", "classifier")):
            np.testing.assert_array_equal(adapter[f"base_model.model.{name}"], after[name])
            assert not np.array_equal(before, after[name])
        else:
            np.testing.assert_array_equal(before, after[name], err_msg="frozen")
    assert changed == 3 * TINY.num_hidden_layers
    # peft's pattern names just these modules.
    named = {
        name.removesuffix(".weight") for name in base if re.fullmatch(config["target_modules"], name[: -len(".weight")])
    }
    assert {f"base_model.model.{name}.lora_A.weight" for name in named} == {n for n in adapter if "lora_A" in n}


@pytest.mark.slow
def test_a_new_process_reads_the_same_model(run, tmp_path):
    text = rows(5, seed=9)
    table = write_table(tmp_path / "new.csv", ("text", "label"), text)
    process = start(["predict", "--model", str(run[1]), "--input", str(table), "--output", "-"])
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    pipe = deberta_jax.pipeline("text-classification", run[1])
    logits = pipe.logits([t for t, _ in text]).astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = [list(json.loads(line)["probabilities"].values()) for line in out.splitlines()]
    np.testing.assert_allclose(found, shares, atol=1e-5)


def test_the_adapter_loads_as_the_saved_model(run):
    directory = run[1]
    model, params = deberta_jax.from_pretrained(directory / "adapter", "sequence-classification")
    saved, expected = deberta_jax.from_pretrained(directory, "sequence-classification")
    assert model.config.num_labels == saved.config.num_labels
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, expected)
    assert jax.tree.structure(params) == jax.tree.structure(expected)


def test_only_updates_and_head_are_trained_and_the_model_begins_as_it_was():
    model = deberta_jax.DebertaForSequenceClassification(TINY)
    base = parameters_of(model)
    lora = find_kernels(base, ("*/value_proj/kernel",), 2, 4.0)
    parameters = lora_parameters(base, lora)
    trained = {
        "/".join(k.key for k in path)
        for path, _ in jax.tree_util.tree_flatten_with_path(split_frozen(parameters.shapes, parameters.frozen)[0])[0]
    }
    name = "deberta.encoder.layers.attention.self.value_proj.kernel"
    assert trained == {
        f"lora/{name}/a",
        f"lora/{name}/b",
        "base/classifier/kernel",
        "base/classifier/bias",
        "base/pooler/dense/kernel",
        "base/pooler/dense/bias",
    }
    params = jax.jit(lambda: deberta_jax.init_params(model, jax.random.key(0)))()
    tree = {"base": params, "lora": init_lora(lora, jax.random.key(1))}
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), merge(tree, lora), params))
    assert np.abs(tree["lora"][name]["a"]).max() <= TINY.hidden_size**-0.5
