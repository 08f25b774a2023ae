"""Directories that hold no model as it is: one line says what they are and what to do."""

import json

import numpy as np
import pytest
import safetensors.numpy

import deberta_jax
from deberta_jax.cli.main import main
from deberta_jax.errors import InputError
from deberta_jax.weights import convert, inspect, load, load_config
from tests.cases import to_tree
from tests.weights.files import raw_config, same, state_of, torch_zip


def touch(directory, *names):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"x")


def model_in(directory, base="v3"):
    directory.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(state_of(base), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(raw_config(base)))


def deepspeed(d):
    touch(d, "zero_to_fp32.py", "latest", "global_step100/mp_rank_00_model_states.pt")


LAYOUTS = {
    "DeepSpeed with its script": (
        deepspeed,
        r"a DeepSpeed checkpoint.*python zero_to_fp32\.py",
    ),
    "DeepSpeed ZeRO-3": (
        lambda d: touch(d, "zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt"),
        "a DeepSpeed checkpoint",
    ),
    "DeepSpeed beside a trainer's files": (
        lambda d: touch(
            d,
            "global_step7/zero_pp_rank_0_mp_rank_00_model_states.pt",
            "config.json",
            "trainer_state.json",
            "rng_state_0.pth",
            "scheduler.pt",
            "training_args.bin",
        ),
        "a DeepSpeed checkpoint",
    ),
    "FSDP": (
        lambda d: touch(
            d, "pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata", "optimizer_0/__0.distcp"
        ),
        r"a sharded FSDP checkpoint: run `accelerate merge-weights .*pytorch_model_fsdp_0 OUT`",
    ),
    "FSDP's folder itself": (lambda d: touch(d, "__0_0.distcp", ".metadata"), "a sharded FSDP checkpoint"),
    "a trainer's output": (
        lambda d: (
            model_in(d / "checkpoint-500"),
            model_in(d / "checkpoint-1000"),
            touch(d, "runs/events", "all_results.json"),
        ),
        r"the output of a trainer, which holds checkpoint-500, checkpoint-1000; give one .*/checkpoint-1000$",
    ),
    "a parent": (
        lambda d: (model_in(d / "0_Transformer"), touch(d, "modules.json", "1_Pooling/config.json")),
        r"no model itself, but there is one in 0_Transformer; give .*0_Transformer$",
    ),
    "GLiNER": (
        lambda d: touch(d, "gliner_config.json", "pytorch_model.bin"),
        "a GLiNER model.*gliner package.*encoder_config.*head 'encoder'",
    ),
    "a peft adapter without weights": (
        lambda d: touch(d, "adapter_config.json"),
        r"the settings of a peft adapter without its weights; adapter_model\.safetensors",
    ),
    "TensorFlow": (
        lambda d: touch(d, "tf_model.h5", "config.json"),
        "no weights in a format.*tf_model.h5 is TensorFlow's",
    ),
    "Flax": (lambda d: touch(d, "flax_model.msgpack"), "no weights in a format.*flax_model.msgpack is Flax's"),
    "ONNX": (lambda d: touch(d, "onnx/model.onnx"), "no weights in a format.*model.onnx is ONNX's"),
    "nothing": (lambda d: touch(d, "README.md", "config.json"), "no weights; expected one of model.safetensors"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_known_directories_are_named_with_what_to_do(name, tmp_path, capsys):
    make, says = LAYOUTS[name]
    directory = tmp_path / "d"
    directory.mkdir()
    make(directory)
    for attempt in (load, inspect, lambda d: convert(d, tmp_path / "out", to="hf")):
        with pytest.raises(InputError, match=f"{directory}: {says}") as error:
            attempt(directory)
        assert "\n" not in str(error.value)
    with pytest.raises(SystemExit):
        main(["inspect", str(directory)])
    captured = capsys.readouterr().err
    assert captured.startswith("error: ")
    assert captured.count("\n") == 1


@pytest.mark.parametrize("name", ["FSDP", "a trainer's output", "GLiNER", "DeepSpeed ZeRO-3", "a parent"])
def test_what_reads_the_config_first_says_the_same(name, tmp_path):
    """Fine-tuning and pipelines ask for the architecture before the weights."""
    make, says = LAYOUTS[name]
    make(tmp_path)
    with pytest.raises(InputError, match=says):
        load_config(tmp_path)
    with pytest.raises(InputError, match=says):
        deberta_jax.pipeline("text-classification", tmp_path)


def test_the_encoder_of_a_gliner_model_as_the_message_says(tmp_path):
    state = state_of("v3")
    inner = {name.replace("deberta.", "token_rep_layer.bert_layer.model."): value for name, value in state.items()}
    rest = {
        "rnn.lstm.weight_ih_l0": np.zeros((8, 8), np.float32),
        "span_rep_layer.span_rep_layer.project_start.0.weight": np.zeros((8, 8), np.float32),
    }
    (tmp_path / "pytorch_model.bin").write_bytes(torch_zip(inner | rest))
    encoder = raw_config("v3")
    (tmp_path / "gliner_config.json").write_text(json.dumps({"model_name": "x", "encoder_config": encoder}))
    with pytest.raises(InputError, match="a GLiNER model"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(encoder))
    model, params, report = load(tmp_path)
    assert same({"deberta": params}, to_tree(model.config, state))
    assert report.count("dropped") == 2
    assert "taken off the names of tensors: token_rep_layer.bert_layer.model." in report.notes


def test_other_files_of_a_trainer_are_not_taken_for_weights(tmp_path):
    state = state_of("v3")
    (tmp_path / "fine.ckpt").write_bytes(torch_zip(state))
    (tmp_path / "config.json").write_text(json.dumps(raw_config("v3")))
    touch(
        tmp_path,
        "optimizer.pt",
        "scheduler.pt",
        "scaler.pt",
        "rng_state.pth",
        "rng_state_0.pth",
        "training_args.bin",
        "openvino_model.bin",
        "random_states_0.pt",
        "sampler.bin",
    )
    model, params, _ = load(tmp_path)
    assert same({"deberta": params}, to_tree(model.config, state))


def test_a_model_beside_its_checkpoints_is_loaded(tmp_path):
    model_in(tmp_path)
    model_in(tmp_path / "checkpoint-10")
    touch(tmp_path, "zero_to_fp32.py")
    assert load(tmp_path)[2].count("loaded") == len(state_of("v3"))
