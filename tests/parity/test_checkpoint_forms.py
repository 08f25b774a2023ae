"""Checkpoints as torch and peft themselves write them: wrappers, training states, adapters, models not merged."""

import argparse
import json
import pathlib

import jax
import numpy as np
import peft
import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from deberta_jax.config import DebertaConfig
from deberta_jax.weights import load
from tests.cases import to_tree
from tests.parity.networks import network

# torch.compile imports what torch itself calls deprecated; nothing here is compiled.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

HEAD = "sequence-classification"


def directory_of(net, tmp_path, name="m"):
    directory = tmp_path / name
    directory.mkdir()
    net.config.save_pretrained(directory)
    return directory


def arrays(net):
    return {name: value.detach().numpy().copy() for name, value in net.state_dict().items()}


def assert_loads(directory, state, tolerance=0.0):
    model, params, _ = load(directory, HEAD)
    expected = to_tree(model.config, state)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), params, expected)
    return model, params


WRAPPERS = {
    "DataParallel": torch.nn.DataParallel,
    "compile": torch.compile,
    "compile in DataParallel": lambda net: torch.nn.DataParallel(torch.compile(net)),
    "a module": lambda net: torch.nn.ModuleDict({"backbone": net}),
    "a sequence": lambda net: torch.nn.Sequential(torch.nn.ModuleDict({"auto_model": net})),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("generation", ["v1", "xl"])
def test_a_wrapper_of_torch_in_front(name, generation, tmp_path):
    net = network(generation, HEAD, torch.float32)
    state = arrays(net)
    directory = directory_of(net, tmp_path)
    wrapped = WRAPPERS[name](net).state_dict()
    assert not wrapped.keys() & state.keys()
    torch.save(wrapped, directory / "pytorch_model.bin")
    assert_loads(directory, state)


def test_wrappers_of_torch_inside(tmp_path):
    net = network("xl", HEAD, torch.float32)
    state = arrays(net)
    directory = directory_of(net, tmp_path)
    layer = type(net.deberta.encoder.layer[0])
    apply_activation_checkpointing(net, check_fn=lambda module: isinstance(module, layer))
    net.deberta.encoder.layer[1] = torch.compile(net.deberta.encoder.layer[1])
    net.pooler = torch.nn.DataParallel(net.pooler)
    # Not the state dict, from which the wrapper of activation checkpointing takes its own name off.
    raw = dict(net.named_parameters())
    assert {"_checkpoint_wrapped_module", "_orig_mod", "module"} <= {word for name in raw for word in name.split(".")}
    torch.save(raw, directory / "pytorch_model.bin")
    assert_loads(directory, state)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_training_state_with_an_optimizer_and_objects(zipped, tmp_path):
    net = network("v3", HEAD, torch.float32)
    state = arrays(net)
    optimizer = torch.optim.AdamW(net.parameters())
    net(input_ids=torch.arange(1, 9)[None]).logits.sum().backward()
    directory = directory_of(net, tmp_path)
    content = {
        "epoch": 3,
        "args": argparse.Namespace(out=pathlib.Path("x"), rates=np.array([1e-5, 2e-5]), best=np.float64(0.5)),
        "state_dict": {f"model.{name}": value.detach().clone() for name, value in net.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "device": torch.device("cpu"),
        "optimizer_class": torch.optim.AdamW,
        "rng": torch.get_rng_state(),
    }
    optimizer.step()
    content["optimizer"] = optimizer.state_dict()
    torch.save(content, directory / "last.ckpt", _use_new_zipfile_serialization=zipped)
    assert_loads(directory, state)


ADAPTERS = {
    "plain": {},
    "scaled by the root of the rank": {"use_rslora": True},
    "by module": {"alpha_pattern": {"output.dense": 3}, "rank_pattern": {"query_proj": 2}},
    "dora": {"use_dora": True},
    "word table": {"target_modules": ["query_proj", "word_embeddings"]},
    "every layer": {"target_modules": ["query_proj", "key_proj", "value_proj", "dense"]},
    "biases": {"bias": "lora_only"},
    "convolution": {"target_modules": ["conv.conv", "value_proj"]},
}


def trained(generation, options):
    """(a base's state, a peft model whose updates and head are random)."""
    net = network(generation, HEAD, torch.float32)
    for value in net.parameters():
        value.data *= 0.2
    base = arrays(net)
    targets = ["in_proj"] if generation == "v1" else ["query_proj", "output.dense"]
    options = {"target_modules": targets, "modules_to_save": ["pooler", "classifier"], **options}
    model = peft.get_peft_model(net, peft.LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=5, **options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad:
                scale = 0.3 if "magnitude" not in name else 1.0
                value.copy_(scale * torch.randn(value.shape, generator=generator).abs().add(0.1))
    return base, model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("generation", "name"), [("v1", "plain"), *(("xl", name) for name in ADAPTERS)])
def test_adapters_and_unmerged_models_of_peft(generation, name, tmp_path):
    base, model = trained(generation, ADAPTERS[name])
    config = model.get_base_model().config
    home = tmp_path / "base"
    home.mkdir()
    config.save_pretrained(home)
    torch.save({key: torch.from_numpy(value) for key, value in base.items()}, home / "pytorch_model.bin")
    model.peft_config["default"].base_model_name_or_path = str(home)
    model.save_pretrained(tmp_path / "adapter")
    whole = tmp_path / "whole"
    whole.mkdir()
    config.save_pretrained(whole)
    torch.save(model.state_dict(), whole / "pytorch_model.bin")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (whole / "adapter_config.json").write_text(json.dumps(settings))
    expected = arrays(model.merge_and_unload())
    changed = [key for key in expected if not np.allclose(expected[key], base[key], atol=1e-3)]
    assert len(changed) > 4
    for directory in (tmp_path / "adapter", whole):
        assert_loads(directory, expected, tolerance=2e-6)


def test_a_config_that_transformers_saved_with_keys_of_another_tool(tmp_path):
    net = network("v3", HEAD, torch.float32)
    net.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    net.save_pretrained(tmp_path)
    config = load(tmp_path, HEAD)[0].config
    assert config == DebertaConfig.from_hf(net.config.to_dict())
    assert config.extra["sentence_transformers"] == net.config.sentence_transformers
    again = type(net.config)(**{k: v for k, v in config.to_hf().items() if k != "model_type"})
    assert again.sentence_transformers == net.config.sentence_transformers
