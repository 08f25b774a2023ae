"""QLoRA: updates of a quantized encoder are trained, saved as an adapter, and added to what was quantized."""

import json
import re

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

import deberta_jax
from deberta_jax.ops.quantization import QuantizedArray, is_compressed
from deberta_jax.ops.quantized_matrix import levels
from deberta_jax.sharding import make_mesh
from deberta_jax.training import finetune_data
from deberta_jax.training.checkpoints import Checkpoints
from deberta_jax.training.lora import find_kernels, init_lora, merge
from deberta_jax.training.optimizers import join_trees, split_frozen
from deberta_jax.training.state import init_state, parameters_of
from deberta_jax.training.step import train_step
from deberta_jax.weights.quantization import quantized_shapes
from tests.made import TINY, refused, rows, stdout_of, weighted_model, write_table
from tests.weights.files import same

pytestmark = pytest.mark.system  # compiles whole training runs

WIDE = TINY.replace(hidden_size=64)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a model with weights: (the model, the run, what it printed)."""
    home = tmp_path_factory.mktemp("qlora")
    base = weighted_model(home / "base", WIDE)
    train = write_table(home / "train.csv", ("text", "label"), rows(96, seed=1))
    files = ["--model", str(base), "--train", str(train), "--eval", str(train), "--output", str(home / "run")]
    lora = [
        "--lora",
        "4",
        "--quantization",
        "nf4",
        "--lora-targets",
        "*/query_proj/kernel",
        "*/value_proj/kernel",
        "*/dense/kernel",
    ]
    rest = ["--epochs", "4", "--batch-size", "16", "--learning-rate", "1e-2", "--max-length", "16"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune_data, "mesh_of", lambda runtime: make_mesh(devices=jax.devices()[:1]))
        printed = stdout_of(["finetune", *files, *lora, *rest])
    return base, home / "run", json.loads(printed)


def nf4(values: np.ndarray) -> np.ndarray:
    """The nearest values that NF4 has, each compared with all levels."""
    blocks = values.reshape(-1, 64)
    scales = np.abs(blocks).max(axis=1, keepdims=True)
    distances = np.abs((blocks / scales)[..., None] - levels("nf4"))
    return (levels("nf4")[distances.argmin(-1)] * scales).reshape(values.shape)


def test_the_saved_model_is_the_quantized_base_plus_the_adapter(run):
    base, after = (load_file(directory / "model.safetensors") for directory in run[:2])
    adapter = load_file(run[1] / "adapter" / "adapter_model.safetensors")
    updated = 0
    for name, before in base.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if name.startswith(("pooler", "classifier")):
            assert not np.array_equal(before, after[name]), "trained"
        elif before.ndim == 1 or "embeddings" in name:
            np.testing.assert_array_equal(before, after[name], err_msg="frozen, in float")
        else:
            expected = nf4(before)
            if f"{stem}.lora_A.weight" in adapter:
                a, b = adapter[f"{stem}.lora_A.weight"], adapter[f"{stem}.lora_B.weight"]
                update = 4.0 * (b.astype(np.float64) @ a.astype(np.float64))
                assert np.abs(update).max() > 1e-3
                expected, updated = expected + update, updated + 1
            np.testing.assert_allclose(after[name], expected, atol=1e-5, err_msg=name)
    assert updated == 5 * WIDE.num_hidden_layers
    assert "quantization_config" not in json.loads((run[1] / "config.json").read_text())


def test_it_learns(run):
    assert run[2]["accuracy"] > 0.9


def test_a_quantized_base_is_frozen_and_its_state_is_restored(tmp_path):
    source = weighted_model(tmp_path / "base", WIDE)
    model, params = deberta_jax.from_pretrained(
        source, "sequence-classification", quantization=deberta_jax.Quantization(scheme="nf4", keep=["pooler"])
    )
    trained, rest = split_frozen(params, frozenset())
    assert not any(map(is_compressed, jax.tree.leaves(trained, is_leaf=is_compressed)))
    kernel = lambda tree: tree["deberta"]["encoder"]["layers"]["intermediate"]["dense"]["kernel"]
    assert isinstance(kernel(rest), QuantizedArray)
    assert jax.tree.structure(join_trees(trained, rest)) == jax.tree.structure(params)
    codes = np.asarray(kernel(params).codes)
    batch = {"input_ids": np.arange(32).reshape(4, 8), "labels": np.array([0, 1, 0, 1])}

    def loss(params, batch, key):
        return {"task": deberta_jax.losses.cross_entropy(model(params, batch["input_ids"]).logits, batch["labels"])}

    optimizer = optax.sgd(0.1)
    step, state = train_step(loss, optimizer, ema=0.9), init_state(params, optimizer, ema=0.9)
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[0]
    np.testing.assert_array_equal(kernel(state.params).codes, codes)
    dtypes = lambda tree: jax.tree.map(lambda array: array.dtype, tree)
    assert dtypes(state.ema_params) == dtypes(state.params)
    with Checkpoints(tmp_path / "state") as checkpoints:
        checkpoints.save(3, state)
    with Checkpoints(tmp_path / "state") as checkpoints:
        restored, _ = checkpoints.restore(3, state)
    assert same(restored.params, state.params)


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_a_gradient_keeps_no_kernel_of_all_layers(remat):
    """Neither dequantized kernels nor the products of the updates are kept for the backward pass."""
    model = deberta_jax.DebertaForSequenceClassification(WIDE.replace(num_hidden_layers=3), remat=remat)
    lora = find_kernels(parameters_of(model), ("*/kernel",), 4, 8.0)
    base = quantized_shapes(model, deberta_jax.Quantization(scheme="nf4", keep=["pooler"]))
    updates = jax.eval_shape(lambda: init_lora(lora, jax.random.key(0)))

    def loss(updates, base):
        return (model(merge({"base": base, "lora": updates}, lora), np.arange(12).reshape(2, 6)).logits ** 2).sum()

    compiled = jax.jit(jax.grad(loss)).lower(updates, base).compile().as_text()
    shapes = {tuple(map(int, found.split(","))) for found in re.findall(r"f32\[([\d,]+)\]", compiled)}
    assert (3, 64, 4) in shapes, "the gradient of an update"
    assert not {shape for shape in shapes if shape[0] == 3 and np.prod(shape) >= 3 * 64 * 64}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantization", "nf4"], "--quantization: is for the frozen weights of a trained model; give --lora"),
        (["--quantization", "nf5", "--lora", "2"], "quantization='nf5': expected one of"),
        (["--quantization", "nf4", "--lora", "2"], "has no whole blocks of 64 inputs; use int8"),
    ],
)
def test_refusals(options, message, task, tmp_path, capsys):
    narrow = weighted_model(tmp_path / "narrow")
    before = sorted(tmp_path.rglob("*"))
    files = ["--model", narrow, "--train", task.home / "train.csv", "--eval", task.home / "eval.csv"]
    columns = ["--text", "sentence", "--label", "kind", "--output", tmp_path / "out"]
    assert message in refused(["finetune", *files, *columns, *options], capsys)
    assert sorted(tmp_path.rglob("*")) == before
