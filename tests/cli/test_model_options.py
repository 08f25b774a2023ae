"""Options that say what of a model's files is read, --ignore and --base-model, in every command that reads weights."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest
import safetensors.numpy

from deberta_jax import (
    DebertaForMaskedLM,
    DebertaForReplacedTokenDetection,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
)
from deberta_jax.cli.main import main
from deberta_jax.errors import InputError
from deberta_jax.text import load_tokenizer
from deberta_jax.training.experiment import Finetune, PretrainMLM, PretrainRTD
from deberta_jax.training.finetuning import plan_finetune
from deberta_jax.training.pretraining import begin, mlm_job, rtd_job
from deberta_jax.weights import from_pretrained, load
from tests.made import LABELS, TINY, make_tokenizer, refused, rows, saved_model, stdout_of, weighted_model, write_table
from tests.weights.adapters import adapter_in, merged, updates

CONFIG = dataclasses.replace(TINY, num_hidden_layers=1)
QUERY = "deberta.encoder.layer.0.attention.self.query_proj"


def weights_of(directory):
    return safetensors.numpy.load_file(directory / "model.safetensors")


def with_tensors(directory, **tensors):
    """Adds tensors to the weights of a model directory."""
    safetensors.numpy.save_file(weights_of(directory) | tensors, directory / "model.safetensors")
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A classifier, an adapter of it that does not find it and has three classes, and the sum of both, by numpy."""
    home = tmp_path_factory.mktemp("adapters")
    base = weighted_model(home / "base", CONFIG)
    state = weights_of(base)
    found = updates(state, [QUERY])
    rng = np.random.default_rng(0)
    head = {"classifier.weight": rng.normal(size=(3, 32)), "classifier.bias": rng.normal(size=3)}
    head = {name: value.astype(np.float32) for name, value in head.items()}
    adapter = adapter_in(home, found, head, "org/base of the adapter", modules_to_save=["classifier"])
    config = dataclasses.replace(CONFIG, id2label=("LABEL_0", "LABEL_1", "LABEL_2"))
    whole = saved_model(home / "whole", DebertaForSequenceClassification(config), load_tokenizer(base))
    safetensors.numpy.save_file(merged(state, found, 3) | head, whole / "model.safetensors")
    return base, adapter, whole


@pytest.mark.slow
def test_evaluate_and_predict_take_the_base_of_an_adapter(models, tmp_path, capsys):
    base, adapter, whole = models
    body = [(text, LABELS.index(label)) for text, label in rows(12, classes=3, seed=4)]
    data = str(write_table(tmp_path / "a.csv", ("text", "label"), body))
    commands = [["evaluate", "--data", data], ["predict", "--input", data, "--output", "-"]]
    for command in commands:
        line = refused([*command, "--model", adapter], capsys)
        assert "a peft adapter of the base model org/base of the adapter" in line
        assert "--base-model DIR" in line
        given = stdout_of([*command, "--model", str(adapter), "--base-model", str(base)])
        ours, theirs = (
            [json.loads(line) for line in out.splitlines()]
            for out in (given, stdout_of([*command, "--model", str(whole)]))
        )
        assert len(ours) == len(theirs) == (12 if command[0] == "predict" else 1)
        for one, other in zip(ours, theirs, strict=True):
            assert one.keys() == other.keys()
            numbers = (one, other) if command[0] == "evaluate" else (one["probabilities"], other["probabilities"])
            assert numbers[0] == pytest.approx(numbers[1], abs=1e-5)
            assert one.get("label") == other.get("label")
    line = refused([*commands[0], "--model", whole, "--base-model", base], capsys)
    assert "is no peft adapter" in line


def test_the_kind_of_an_adapter_is_that_of_its_settings(tmp_path):
    """A tagger's adapter is evaluated as one: a sentence a row, not a class a text."""
    names = ("O", "B-PER", "I-PER")
    model = DebertaForTokenClassification(dataclasses.replace(CONFIG, id2label=names))
    base = saved_model(tmp_path / "base", model, make_tokenizer(tmp_path / "tokenizer"), seed=1)
    found = updates(weights_of(base), [QUERY])
    adapter = adapter_in(tmp_path, found, {}, "nowhere", task_type="TOKEN_CLS", modules_to_save=None)
    data = tmp_path / "a.conll"
    data.write_text("ban B-PER\nkon I-PER\ntell O\n\nsark O\n")
    arguments = ["--model", str(adapter), "--base-model", str(base)]
    metrics = json.loads(stdout_of(["evaluate", *arguments, "--data", str(data)]))
    assert {"precision", "recall", "f1"} <= metrics.keys()
    out = stdout_of(["predict", *arguments, "--input", str(data), "--output", "-"])
    assert [len(json.loads(line)["tags"]) for line in out.splitlines()] == [3, 1]


def test_finetune_takes_the_base_of_an_adapter(models, tmp_path):
    base, adapter, whole = models
    write_table(tmp_path / "three.csv", ("text", "label"), rows(24, classes=3))
    data = str(tmp_path / "three.csv")
    options = {"model": str(adapter), "train": data, "eval": data, "output": str(tmp_path / "run"), "max_length": 16}
    with pytest.raises(InputError, match=r"org/base of the adapter.*--base-model DIR"):
        plan_finetune(Finetune(**options))
    _, job = plan_finetune(Finetune(base_model=str(base), batch_size=8, **options))
    expected = from_pretrained(whole, "sequence-classification")[1]
    found = job.objective.initial_params(None)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    assert job.record["experiment"]["base_model"] == str(base)
    _, job = plan_finetune(Finetune(batch_size=8, **{**options, "model": str(whole)}))
    assert "base_model" not in job.record["experiment"]  # a run from before the option goes on


@pytest.mark.parametrize("option", [["--ignore", "x"], ["--base-model", "x"]])
@pytest.mark.parametrize("command", [["finetune"], ["pretrain", "mlm"], ["pretrain", "rtd"]])
def test_options_of_weights_do_not_go_with_a_start_from_scratch(task, tmp_path, capsys, command, option):
    text = task.home / "train.csv"
    line = refused(
        [
            *command,
            "--model",
            task.blank,
            "--from-scratch",
            "--train",
            text,
            "--eval",
            text,
            "--output",
            tmp_path / "run",
            *option,
        ],
        capsys,
    )
    assert f"{option[0]}: no weights are read with --from-scratch" in line
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Experiments' options, a generator and a discriminator with tensors of heads that are not known."""
    home = tmp_path_factory.mktemp("pair")
    tokenizer = make_tokenizer(home / "tokenizer")
    text = home / "text.txt"
    text.write_text("\n".join(line for line, _ in rows(60, classes=3)))
    generator = DebertaForMaskedLM(dataclasses.replace(CONFIG, mask_decoder=True))
    saved_model(home / "generator", generator, tokenizer, seed=1)
    saved_model(home / "discriminator", DebertaForReplacedTokenDetection(CONFIG), tokenizer, seed=2)
    with_tensors(home / "generator", **{"crf.transitions": np.zeros((3, 3), np.float32)})
    with_tensors(home / "discriminator", **{"loss_fct.weight": np.zeros(3, np.float32)})
    options = {
        "train": (str(text),),
        "eval": str(text),
        "output": str(home / "run"),
        "max_length": 16,
        "batch_size": 8,
        "steps": 2,
    }
    return home, options


def initial_params(e):
    record, directory = begin(e)
    job = (mlm_job if isinstance(e, PretrainMLM) else rtd_job)(e, record, directory)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = job.objective.parameters.shapes
    return job.objective.initial_params(jax.tree.map(lambda _: one, shapes)), job


def test_pretrain_mlm_takes_ignore(pair):
    home, options = pair
    options = {"model": str(home / "generator"), **options}
    with pytest.raises(InputError, match=r"crf\.transitions.*--ignore 'crf\.\*'"):
        initial_params(PretrainMLM(**options))
    with pytest.raises(InputError, match=r"--ignore loss_fct\.\*: matches no tensor of .*generator"):
        initial_params(PretrainMLM(ignore=("crf.*", "loss_fct.*"), **options))
    found, job = initial_params(PretrainMLM(ignore=("crf.*",), **options))
    expected = load(home / "generator", "masked-lm", ignore=["crf.*"])[1]
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert job.record["experiment"]["ignore"] == ["crf.*"]


def test_pretrain_rtd_takes_ignore_for_both_models(pair):
    home, options = pair
    options = {"model": str(home / "discriminator"), "generator": str(home / "generator"), **options}
    for some in ((), ("crf.*",), ("loss_fct.*",)):
        with pytest.raises(InputError, match=r"(crf\.transitions|loss_fct\.weight).*--ignore"):
            initial_params(PretrainRTD(ignore=some, **options))
    with pytest.raises(InputError, match=r"--ignore other\.\*: matches no tensor of .*generator or .*discriminator"):
        initial_params(PretrainRTD(ignore=("crf.*", "other.*", "loss_fct.*"), **options))
    found, _ = initial_params(PretrainRTD(ignore=("crf.*", "loss_fct.*"), sharing="none", **options))
    for name, head, pattern in (
        ("generator", "masked-lm", "crf.*"),
        ("discriminator", "replaced-token-detection", "loss_fct.*"),
    ):
        expected = load(home / name, head, ignore=[pattern])[1]
        jax.tree.map(np.testing.assert_array_equal, found[name], expected)


def test_pretrain_takes_the_base_of_an_adapter(pair, tmp_path):
    home, options = pair
    state = {name: value for name, value in weights_of(home / "generator").items() if not name.startswith("crf")}
    base = saved_model(
        tmp_path / "base",
        DebertaForMaskedLM(dataclasses.replace(CONFIG, mask_decoder=True)),
        load_tokenizer(home / "generator"),
    )
    safetensors.numpy.save_file(state, base / "model.safetensors")
    updated = updates(state, [QUERY])
    adapter = adapter_in(tmp_path, updated, {}, "nowhere", modules_to_save=None)
    options = {**options, "model": str(adapter)}
    with pytest.raises(InputError, match="--base-model DIR"):
        initial_params(PretrainMLM(**options))
    found, _ = initial_params(PretrainMLM(base_model=str(base), **options))
    kernel = found["deberta"]["encoder"]["layers"]["attention"]["self"]["query_proj"]["kernel"][0]
    expected = merged(state, updated, 3)[f"{QUERY}.weight"]
    np.testing.assert_allclose(np.asarray(kernel).reshape(32, 32), expected.T, atol=1e-6)


def start_of(model, data, tmp_path, caplog, **more):
    """What is said when the parameters of a fine-tuning are read."""
    caplog.clear()
    e = Finetune(
        model=str(model), train=data, eval=data, output=str(tmp_path / "run"), max_length=16, batch_size=8, **more
    )
    _, job = plan_finetune(e)
    job.objective.initial_params(None)
    return {record.getMessage() for record in caplog.records if record.levelname == "WARNING"}, job


@pytest.mark.slow
def test_a_trained_classifier_without_names_says_which_label_it_takes_for_which(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("deberta_jax"), "propagate", True)
    caplog.set_level("INFO")
    model = weighted_model(tmp_path / "model", CONFIG)
    names = str(write_table(tmp_path / "names.csv", ("text", "label"), rows(24)))
    said, job = start_of(model, names, tmp_path, caplog)
    (line,) = (line for line in said if "id2label" in line)
    assert f"{model}: " in line
    assert "it is assumed that label 0 is neg, 1 is pos" in line
    assert job.objective.configs[0].id2label == ("neg", "pos")
    # Numbers are the ids that such a model is evaluated with; nothing is assumed.
    ids = str(write_table(tmp_path / "ids.csv", ("text", "label"), [(t, int(k == "pos")) for t, k in rows(24)]))
    assert not any("id2label" in line for line in start_of(model, ids, tmp_path, caplog)[0])
    from_one = [(text, {"pos": 1, "neg": 2}[label]) for text, label in rows(24)]
    ids = str(write_table(tmp_path / "one.csv", ("text", "label"), from_one))
    assert any("label 0 is 1, 1 is 2" in line for line in start_of(model, ids, tmp_path, caplog)[0])
    # A model whose labels have these names, and one without a classifier, assume nothing.
    named = weighted_model(tmp_path / "named", dataclasses.replace(CONFIG, id2label=("pos", "neg")))
    said, job = start_of(named, names, tmp_path, caplog)
    assert not any("id2label" in line for line in said)
    assert job.objective.configs[0].id2label == ("pos", "neg")
    bare = saved_model(
        tmp_path / "bare", DebertaForMaskedLM(dataclasses.replace(CONFIG, mask_decoder=True)), load_tokenizer(model)
    )
    assert not any("id2label" in line for line in start_of(bare, names, tmp_path, caplog)[0])


def test_tags_that_are_numbers_are_said_to_be_the_models_ids(tmp_path, capsys):
    """A file may number its tags otherwise than the model does."""
    model = DebertaForTokenClassification(dataclasses.replace(CONFIG, id2label=("O", "B-LOC", "B-PER")))
    directory = saved_model(tmp_path / "model", model, make_tokenizer(tmp_path / "tokenizer"))
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"tokens": ["ban", "kon", "tell"], "ner_tags": [2, 0, 1]}) + "\n")
    main(["evaluate", "--model", str(directory), "--data", str(path)])
    assert "a.jsonl: labels are read as the model's: 0 as O, 1 as B-LOC, 2 as B-PER" in capsys.readouterr().err
