"""transformers -> here -> transformers, every generation and head: equal keys, equal bits, nothing missing or left."""

import json
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from deberta_jax.models import Runtime, abstract_params
from deberta_jax.weights import convert, load, save_pretrained
from tests.cases import BASE
from tests.parity.networks import CLASSES, GENERATIONS, network

pytestmark = pytest.mark.parity

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FORMS = ("safetensors", "safetensors sharded", "bin", "bin sharded", "bin legacy")
PAIRS = [(g, h) for g in GENERATIONS for h in CLASSES if not (g.startswith("v1") and h == "multiple-choice")]


def write(net, directory: Path, form: str) -> None:
    net.config.architectures = [type(net).__name__]
    net.config.save_pretrained(directory)
    if form.startswith("safetensors"):
        net.save_pretrained(directory, max_shard_size="20KB" if "sharded" in form else "1GB")
        return
    state = net.state_dict()
    if form != "bin sharded":
        torch.save(state, directory / "pytorch_model.bin", _use_new_zipfile_serialization=form == "bin")
        return
    shards = [dict(list(state.items())[i::3]) for i in range(3)]
    where = {}
    for i, shard in enumerate(shards, 1):
        name = f"pytorch_model-{i:05d}-of-00003.bin"
        torch.save(shard, directory / name)
        where |= dict.fromkeys(shard, name)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def stored(directory: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in directory.glob("*.safetensors") for k, v in load_file(file).items()}


def assert_same(net, directory: Path) -> None:
    """The directory holds what transformers itself would save, and transformers loads it with nothing to report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again, report = type(net).from_pretrained(directory, output_loading_info=True, dtype=net.dtype)
    assert not any(report.values()), report
    mine, theirs = again.state_dict(), net.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(mine[name], value), name
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == [type(net).__name__]
    assert config["dtype"] == str(net.dtype).removeprefix("torch.")


@pytest.mark.parametrize(
    ("generation", "head", "form"), [(g, h, f) for g, h in PAIRS for f in (FORMS if g in BASE else FORMS[3:4])]
)
def test_round_trip_is_exact(generation, head, form, tmp_path):
    for name, dtype in DTYPES.items():
        net = network(generation, head, dtype)
        source = tmp_path / name
        source.mkdir()
        write(net, source, form)
        model, params, report = load(source, head, Runtime(param_dtype=name))
        assert report.initialised == ()
        shapes = jax.tree.map(lambda a: a.shape, params)
        assert shapes == jax.tree.map(lambda a: a.shape, abstract_params(model))
        assert {str(a.dtype) for a in jax.tree.leaves(params)} == {name}
        out = tmp_path / f"{name} saved"
        save_pretrained(out, model, params, max_shard_size="30KB" if "sharded" in form else "1GB")
        assert_same(net, out)
        reference = tmp_path / f"{name} reference"
        net.save_pretrained(reference)
        assert stored(out).keys() == stored(reference).keys()


@pytest.mark.parametrize("to", ["hf", "orbax"])
@pytest.mark.parametrize(("generation", "head"), PAIRS)
def test_conversion_is_exact(generation, head, to, tmp_path):
    net = network(generation, head, torch.bfloat16)
    (tmp_path / "source").mkdir()
    write(net, tmp_path / "source", "bin")
    convert(tmp_path / "source", tmp_path / "out", to=to)
    if to == "orbax":
        convert(tmp_path / "out", tmp_path / "back", to="hf")
    assert_same(net, tmp_path / ("out" if to == "hf" else "back"))


@pytest.mark.parametrize("generation", ["v1", "v3"])
def test_untied_decoder_is_kept(generation, tmp_path):
    net = network(generation, "masked-lm", torch.float32, tie_word_embeddings=False)
    net.save_pretrained(tmp_path / "source")
    model, params, _ = load(tmp_path / "source", "masked-lm")
    head = params["cls"]["predictions"]
    assert np.array_equal(head["decoder"]["kernel"].T, net.cls.predictions.decoder.weight.detach().numpy())
    assert np.array_equal(head["bias"], net.cls.predictions.decoder.bias.detach().numpy())
    save_pretrained(tmp_path / "out", model, params)
    saved = stored(tmp_path / "out")
    for name, value in net.state_dict().items():
        if name != "cls.predictions.bias":  # which no output of transformers' untied head reads
            assert torch.equal(saved[name], value), name


@pytest.mark.parametrize("generation", ["v1", "v2", "v3", "xl"])
def test_original_head_and_mask_decoder_load_in_transformers(generation, tmp_path):
    """A released file (lm_predictions, absolute positions) saved again: transformers reads its non-legacy head."""
    net = network(generation, "masked-lm", torch.float32, legacy=False)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    table = torch.randn(64, 32)
    net.config.save_pretrained(tmp_path)
    torch.save(state | {"deberta.embeddings.position_embeddings.weight": table}, tmp_path / "pytorch_model.bin")
    model, params, _ = load(tmp_path, "masked-lm")
    assert model.config.mask_decoder
    assert not model.config.legacy
    assert np.array_equal(params["deberta"]["embeddings"]["position_embeddings"]["embedding"], table.numpy())
    save_pretrained(tmp_path / "out", model, params)
    assert torch.equal(stored(tmp_path / "out")["deberta.embeddings.position_embeddings.weight"], table)
    again, report = type(net).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    # transformers' v1 and v2 classes have no mask decoder; the table is the one thing they leave.
    assert set(report["unexpected_keys"]) <= {"deberta.embeddings.position_embeddings.weight"}
    assert all(torch.equal(again.state_dict()[name], value) for name, value in state.items())


def test_multiple_choice_of_v1_loads_as_the_class_transformers_has(tmp_path):
    from deberta_jax.config import DebertaConfig
    from deberta_jax.models import HEADS, init_params

    model = HEADS["multiple-choice"].model(DebertaConfig.from_hf(BASE["v1"]))
    params = init_params(model, jax.random.key(0))
    save_pretrained(tmp_path, model, params)
    net, report = transformers.DebertaForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert np.array_equal(net.classifier.weight.detach().numpy(), np.asarray(params["classifier"]["kernel"]).T)
    model, again, _ = load(tmp_path, "multiple-choice")
    assert jax.tree.all(jax.tree.map(np.array_equal, params, again))


def test_numbers_of_pytorch_files_match_what_torch_reads(tmp_path):
    """Views, transposes and shared storages, in both file formats."""
    net = network("v3", "encoder", torch.float32)
    state = {f"deberta.{k}": v for k, v in net.state_dict().items()}
    name = "deberta.embeddings.LayerNorm.bias"
    state[name] = torch.randn(4, 32)[2]
    state["deberta.encoder.layer.0.intermediate.dense.weight"] = torch.randn(32, 48).T
    net.config.save_pretrained(tmp_path)
    for zipped in (True, False):
        torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        _, params, _ = load(tmp_path, "encoder")
        assert np.array_equal(params["embeddings"]["LayerNorm"]["bias"], state[name].numpy())
        kernel = params["encoder"]["layers"]["intermediate"]["dense"]["kernel"][0]
        assert np.array_equal(kernel, state["deberta.encoder.layer.0.intermediate.dense.weight"].T.numpy())
