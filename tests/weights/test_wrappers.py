"""Checkpoints under wrappers: what training programs put around a model is taken off, and what is not its own named."""

import json
import logging

import jax
import numpy as np
import pytest
import safetensors.numpy

import deberta_jax
from deberta_jax.cli.main import main
from deberta_jax.errors import InputError
from deberta_jax.training.experiment import Finetune
from deberta_jax.training.finetuning import plan_finetune
from deberta_jax.weights import convert, from_pretrained, inspect, load, verify
from tests.cases import to_tree
from tests.made import binary_files, weighted_model
from tests.weights.files import discriminator, raw_config, same, state_of, torch_zip

PARTS = ("pooler", "classifier")
HEAD = "sequence-classification"
FRONTS = [
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "model.",
    "_forward_module.",
    "_fsdp_wrapped_module.",
    "base_model.model.",
    "0.auto_model.",
    "backbone.",
    "module.model._orig_mod.net.",
    "deberta.",
    "encoder.",
    "é.",
]
INSIDE = ["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "module"]


def raw(base="v3", **options):
    return raw_config(base, num_labels=3, **options)


def under(front, state):
    return {front + name: value for name, value in state.items()}


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_wrapper_in_front(front, form, write, caplog):
    state = state_of("v3", PARTS)
    directory = write("m", under(front, state), raw())
    if form == "bin":
        (directory / "pytorch_model.bin").write_bytes(torch_zip(under(front, state)))
        (directory / "model.safetensors").unlink()
    with caplog.at_level(logging.INFO, "deberta_jax"):
        model, params, report = load(directory, HEAD)
    assert same(params, to_tree(model.config, state))
    assert report.count("loaded") == len(state)
    (line,) = (line for line in caplog.messages if "taken off" in line)
    for word in front.split(".")[:-1]:
        assert word in line.split("tensors: ")[1]


@pytest.mark.parametrize("front", ["0.auto_model.", "backbone.", "model.", "module.", "transformer.encoder."])
def test_a_wrapper_in_front_of_a_bare_encoder(front, write):
    state = state_of("xl")
    bare = {name.removeprefix("deberta."): value for name, value in state.items()}
    model, params, _ = load(write("m", under(front, bare), raw("xl")))
    assert same({"deberta": params}, to_tree(model.config, state))


@pytest.mark.parametrize("word", INSIDE)
@pytest.mark.parametrize("base", ["v1", "xl"])
def test_a_wrapper_inside(word, base, write):
    """Around the encoder, around each layer, and around a head."""
    state = state_of(base, PARTS)
    wrapped = {}
    for name, value in state.items():
        name = name.replace("deberta.", f"deberta.{word}.").replace("pooler.", f"pooler.{word}.")
        head, dot, rest = name.partition(".layer.")
        number, _, last = rest.partition(".")
        wrapped[f"{head}.layer.{number}.{word}.{last}" if dot else name] = value
    model, params, report = load(write("m", wrapped, raw(base)), HEAD)
    assert same(params, to_tree(model.config, state))
    assert f"taken off the names of tensors: {word}." in report.notes


def test_a_file_without_a_wrapper_is_loaded_without_a_message(write):
    assert load(write("m", state_of("v3", PARTS), raw()), HEAD)[2].notes == ()


def test_a_prefix_that_not_all_tensors_of_the_model_have_is_no_wrapper(write):
    state = state_of("v3", PARTS)
    name = "deberta.encoder.layer.1.output.dense.bias"
    state[f"model.{name}"] = state.pop(name)
    with pytest.raises(InputError, match=r"missing: deberta\.encoder\.layer\.1\.output\.dense\.bias"):
        load(write("m", state, raw()))


def test_two_encoders_in_one_file_are_refused_until_one_is_left_out(write):
    state = state_of("v3", PARTS)
    other = {name: value + 1 for name, value in state.items()}
    directory = write("m", under("student.", state) | under("teacher.", other), raw())
    with pytest.raises(InputError, match=r"several encoders \(under student\., teacher\.\).*--ignore 'student\.\*'"):
        load(directory, HEAD)
    model, params, report = load(directory, HEAD, ignore=["teacher.*"])
    assert same(params, to_tree(model.config, state))
    assert report.count("dropped") == len(other)
    model, params, _ = load(directory, HEAD, ignore=["student.*"])
    assert same(params, to_tree(model.config, other))


FOREIGN = {
    "crf.transitions": np.zeros((3, 3), np.float32),
    "crf.start_transitions": np.zeros(3, np.float32),
    "loss_fct.weight": np.ones(3, np.float32),
    "classifier.out_proj.weight": np.zeros((3, 8), np.float32),
}
HINT = r"ignore=\['classifier\.out_proj\.\*', 'crf\.\*', 'loss_fct\.\*'\] \(on the command line --ignore 'classifier"


@pytest.mark.parametrize("front", ["", "model."])
def test_tensors_of_a_foreign_head_are_named_and_left_out_on_request(front, write):
    state = state_of("v3", ("classifier",))
    directory = write("m", under(front, state | FOREIGN), raw())
    for attempt in (lambda: load(directory, "token-classification"), lambda: convert(directory, front + "x", to="hf")):
        with pytest.raises(InputError, match=HINT) as error:
            attempt()
        for name in FOREIGN:
            assert front + name in str(error.value)
        assert "head 'encoder'" in str(error.value)
    patterns = ["crf.*", "*loss_fct.weight", "classifier.out_proj.*"]
    model, params, report = load(directory, "token-classification", ignore=patterns)
    assert same(params, to_tree(model.config, state))
    reasons = {row.name: row.reason for row in report.tensors if row.fate == "dropped"}
    assert set(reasons) == {front + name for name in FOREIGN}
    assert reasons[front + "crf.transitions"] == "left out by ignore crf.*"
    # The encoder alone needs no request.
    _, params, report = load(directory)
    assert same({"deberta": params}, {"deberta": to_tree(model.config, state)["deberta"]})
    assert {row.reason for row in report.tensors if row.name in reasons} == {"of no head that is known here"}
    (line,) = (note for note in report.notes if note.startswith("left out"))
    assert all(front + name in line for name in FOREIGN)


def test_a_head_beside_a_wrapped_encoder_is_not_taken_for_a_head_of_the_model(write):
    """``self.backbone = AutoModel(...)``, ``self.classifier = Linear``: what the classifier reads is not known."""
    encoder = {name.replace("deberta.", "backbone."): value for name, value in state_of("v3").items()}
    head = {"classifier.weight": np.zeros((3, 8), np.float32), "classifier.bias": np.zeros(3, np.float32)}
    directory = write("m", encoder | head, raw())
    with pytest.raises(InputError, match=r"classifier\.weight.*ignore="):
        load(directory, "token-classification")
    assert same({"deberta": load(directory)[1]}, to_tree(load(directory)[0].config, state_of("v3")))
    _, params, _ = load(directory, "token-classification", ignore=["classifier.*"], new_head=jax.random.key(0))
    assert params["classifier"]["kernel"].shape == (8, 3)


def test_patterns_that_match_nothing_or_too_much_are_refused(write):
    directory = write("m", state_of("v3", PARTS), raw())
    with pytest.raises(InputError, match=r"ignore crf\.\*: matches no tensor"):
        load(directory, HEAD, ignore=["crf.*"])
    with pytest.raises(InputError, match=r"missing: deberta\.embeddings\.LayerNorm\.weight"):
        load(directory, HEAD, ignore=["*embeddings.LayerNorm*"])
    with pytest.raises(InputError, match="give a list"):
        load(directory, HEAD, ignore="pooler.*")


def test_the_commands_take_the_same_option(write, tmp_path, capsys):
    state = state_of("v3", PARTS)
    directory = str(write("m", state | FOREIGN, raw()))
    patterns = ["--ignore", "crf.*", "loss_fct.*", "classifier.out_proj.*"]
    for command in (
        ["convert", directory, str(tmp_path / "out"), "--to", "hf"],
        ["convert", directory, str(tmp_path / "out"), "--to", "hf", "--head", HEAD],
    ):
        with pytest.raises(SystemExit):
            main(command)
        assert "crf.transitions" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    main(["inspect", directory])
    shown = capsys.readouterr().out
    assert "dropped crf.transitions: of no head that is known here" in shown
    assert "ready for   encoder\n" in shown
    main(["inspect", directory, *patterns])
    assert "ready for   encoder, sequence-classification" in capsys.readouterr().out
    main(["convert", directory, str(tmp_path / "out"), "--to", "hf", *patterns])
    assert "left out by ignore crf.*" in capsys.readouterr().out
    saved = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert {name: value.tolist() for name, value in saved.items()} == {n: v.tolist() for n, v in state.items()}
    main(["verify", directory, "--against", str(tmp_path / "out"), *patterns])
    assert "sequence-classification logits" in capsys.readouterr().out


def test_messages_about_very_many_tensors_are_short_and_soon_there(write):
    state = state_of("v3", PARTS) | {f"crf.{i}\x1b\n.weight": np.zeros(1, np.float32) for i in range(3000)}
    with pytest.raises(InputError, match=r"and 2950 more.*ignore=\['crf\.\*'\]") as error:
        load(write("m", state, raw()), HEAD)
    assert len(str(error.value)) < 6000
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "extra",
    [
        {"deberta.encoder.layer.0.output.dense.SCB": np.ones(8, np.float32)},
        {"deberta.encoder.layer.0.output.dense.weight.absmax": np.ones(8, np.float32)},
        {"deberta.encoder.layer.0.output.dense.qweight": np.ones((8, 2), np.int32)},
        {"deberta.encoder.layer.0.output.dense.weight": np.ones((8, 12), np.int8)},
    ],
    ids=["bitsandbytes 8 bits", "bitsandbytes 4 bits", "gptq", "integers"],
)
def test_quantized_weights_are_refused_for_what_they_are(extra, write):
    directory = write("m", state_of("v3", PARTS) | extra, raw(quantization_config={"load_in_8bit": True}))
    with pytest.raises(InputError, match=r"quantized weights \(deberta\.encoder\.layer\.0.*dequantize"):
        load(directory, HEAD)


def test_pieces_that_fsdp_and_deepspeed_leave_are_named_for_what_they_are(write):
    state = state_of("v3", PARTS)
    flat = {f"_fsdp_wrapped_module.deberta.encoder.layer.{i}._flat_param": np.zeros(9, np.float32) for i in range(2)}
    embeddings = {name: value for name, value in state.items() if "embeddings" in name}
    with pytest.raises(InputError, match=r"FSDP's flattened parameters.*FULL_STATE_DICT"):
        load(write("fsdp", embeddings | flat, raw()), HEAD)
    empty = {name: np.zeros(0, np.float32) for name in state}
    with pytest.raises(InputError, match=r"empty tensors, as DeepSpeed ZeRO-3 leaves them.*zero_to_fp32\.py"):
        load(write("zero", empty, raw()), HEAD)


def test_quantization_config_of_a_file_whose_weights_are_not_quantized(write, tmp_path):
    settings = {"load_in_8bit": True, "quant_method": "bitsandbytes"}
    state = state_of("v3", PARTS)
    directory = write("m", state, raw(quantization_config=settings))
    model, params = from_pretrained(directory, HEAD)
    assert same(params, to_tree(model.config, state))
    convert(directory, tmp_path / "out", to="hf")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_verify_and_inspect_read_wrapped_files(write):
    state = discriminator()
    plain, wrapped = write("plain", state, raw()), write("wrapped", under("module.model.", state), raw())
    assert verify(wrapped, plain, tolerance=0.0).passed
    ready = [[head for head, use in inspect(path).uses.items() if use == "ready"] for path in (wrapped, plain)]
    assert ready[0] == ready[1] == ["encoder", "replaced-token-detection"]


@pytest.mark.slow
def test_fine_tuning_prediction_and_pipelines_take_the_same_option(tmp_path, capsys):
    base = weighted_model(tmp_path / "base")
    path = base / "model.safetensors"
    safetensors.numpy.save_file(
        safetensors.numpy.load_file(path) | {"crf.transitions": FOREIGN["crf.transitions"]}, path
    )
    files = binary_files(tmp_path)
    options = {"model": str(base), "output": str(tmp_path / "run"), "text": ("sentence",), "label": "kind", **files}
    for ignore in ((), ("crf.*",)):
        _, job = plan_finetune(Finetune(max_length=16, batch_size=8, ignore=ignore, **options))
        if ignore:
            assert job.objective.initial_params(None)["classifier"]["kernel"].shape == (32, 2)
            assert job.record["experiment"]["ignore"] == ["crf.*"]
        else:
            with pytest.raises(InputError, match=r"--ignore 'crf\.\*'"):
                job.objective.initial_params(None)
            assert "ignore" not in job.record["experiment"]  # a run from before the option goes on
    with pytest.raises(InputError, match="--ignore: no weights are read"):
        plan_finetune(Finetune(ignore=("x",), from_scratch=True, **options))
    with pytest.raises(InputError, match=r"--ignore 'crf\.\*'"):
        deberta_jax.pipeline("text-classification", base)
    label = deberta_jax.pipeline("text-classification", base, ignore=["crf.*"], max_length=16)("ban kon")[0]["label"]
    command = ["predict", "--model", str(base), "--input", files["eval"], "--output", "-", "--text", "sentence"]
    main([*command, "--max-length", "16", "--ignore", "crf.*"])
    assert label in ("LABEL_0", "LABEL_1")
    assert len(capsys.readouterr().out.splitlines()) == 40
