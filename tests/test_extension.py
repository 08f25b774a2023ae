"""A head and a kind of task added from outside the package, each by one registry entry, do all that ours do."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

import deberta_jax
from deberta_jax import plugins, storage
from deberta_jax.cli.main import main
from deberta_jax.errors import InputError
from deberta_jax.models import HEADS
from deberta_jax.ops.attention import IMPLEMENTATIONS
from deberta_jax.tasks import TASK_KINDS
from deberta_jax.training.experiment import Finetune, Optimization
from deberta_jax.training.finetuning import finetune
from deberta_jax.weights import inspect, verify
from tests.made import WORDS, blank_model, refused, stdout_of, write_table

PLUGIN = Path(__file__).parent / "extension" / "ordinal.py"
LEVELS = ("1", "2", "3")


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The name of a module in the current directory; the registries are as before when the test ends."""
    name = "my_ordinal"
    (tmp_path / f"{name}.py").write_text(PLUGIN.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    heads, kinds = dict(HEADS), dict(TASK_KINDS)
    yield name
    for registry, before in ((HEADS, heads), (TASK_KINDS, kinds)):
        registry.clear()
        registry.update(before)
    sys.modules.pop(name, None)
    plugins.IMPORTED.clear()


def stars(path: Path, count: int, seed: int) -> Path:
    """Texts with a third, two thirds or all of their words from one list: one to three stars."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        good, bad = 2 * (i % 3 + 1), 2 * (2 - i % 3)
        words = [*rng.choice(WORDS["pos"], good), *rng.choice(WORDS["neg"], bad)]
        rows.append((" ".join(map(str, rng.permutation(words))), LEVELS[i % 3]))
    return write_table(path, ("text", "stars"), rows)


@pytest.mark.slow
def test_command_line(plugin, one_device, capsys, tmp_path):
    blank_model(tmp_path / "blank")
    stars(tmp_path / "train.csv", 240, 1)
    stars(tmp_path / "eval.csv", 60, 2)
    run = f"finetune --plugin {plugin} --task ordinal-regression --label stars --model blank --from-scratch"
    run += " --train train.csv --eval eval.csv --output out --epochs 12 --max-length 24 --learning-rate 5e-3"
    main([*run.split(), "--checkpoint-every", "1000"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["DebertaV2ForMeanPooling"]
    assert list(config["id2label"].values()) == list(LEVELS)
    tensors = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert {name: tensors[name].shape for name in tensors if not name.startswith("deberta.")} == {
        "mlp.hidden.weight": (32, 32),
        "mlp.hidden.bias": (32,),
        "mlp.output.weight": (2, 32),
        "mlp.output.bias": (2,),
    }
    capsys.readouterr()
    metrics = json.loads(stdout_of(["evaluate", "--plugin", plugin, "--model", "out", "--data", "eval.csv"]))
    assert metrics["accuracy"] > 0.8
    main(["predict", f"--plugin={plugin}", "--model", "out", "--input", "eval.csv", "--output", "answers.jsonl"])
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    truth = [LEVELS[i % 3] for i in range(60)]
    assert np.mean([a["level"] == t for a, t in zip(answers, truth, strict=True)]) == pytest.approx(metrics["accuracy"])
    main(["inspect", "--plugin", plugin, "out"])
    assert "ready for   encoder, mean-pooling" in capsys.readouterr().out
    main(["verify", "--plugin", plugin, "out"])
    assert "mean-pooling logits" in capsys.readouterr().out
    main(["convert", "--plugin", plugin, "out", "orbax", "--to", "orbax"])
    main(["verify", "--plugin", plugin, "orbax", "--against", "out"])
    assert "pass" in capsys.readouterr().out


@pytest.mark.slow
def test_library(plugin, one_device, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(plugin)
    blank_model(tmp_path / "blank")
    experiment = Finetune(
        task="ordinal-regression",
        label="stars",
        model="blank",
        from_scratch=True,
        train=str(stars(tmp_path / "train.csv", 48, 1)),
        eval=str(stars(tmp_path / "eval.csv", 12, 2)),
        output="out",
        epochs=1,
        max_length=16,
        optimization=Optimization(learning_rate=5e-3),
    )
    finetune(experiment)
    model, params = deberta_jax.from_pretrained("out", head="mean-pooling")
    pipe = deberta_jax.pipeline("ordinal-regression", "out")
    texts = ["ban ban ten", "ban"]
    encoded = pipe.tokenizer(texts, padding="longest")
    apply = jax.jit(lambda p, ids, mask: model.apply({"params": p}, ids, attention_mask=mask).logits)
    logits = apply(params, encoded.input_ids, encoded.attention_mask)
    answers = pipe(texts)
    np.testing.assert_allclose([answer["thresholds"] for answer in answers], logits, atol=1e-5)
    assert pipe(texts[0]) == answers[0]
    deberta_jax.save_pretrained("again", model, params)
    first, second = (safetensors.numpy.load_file(f"{name}/model.safetensors") for name in ("out", "again"))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert inspect("again").heads == {"mlp": 32 * 32 + 32 + 2 * 32 + 2}
    assert verify("again").passed
    del HEADS["mean-pooling"], TASK_KINDS["ordinal-regression"]
    with pytest.raises(InputError, match="not explained: mlp"):
        deberta_jax.from_pretrained("out", head="sequence-classification")


@pytest.mark.slow
def test_an_adapter_and_a_plan(plugin, tmp_path, capsys, monkeypatch):
    # A process that compiles then does not look in the current directory by itself.
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    cache = storage.cache_directory()
    assert cache is not None
    cached = lambda: {path for name in ("plans", "tokens") for path in (cache / name).glob("*")}
    before = cached()
    blank_model(tmp_path / "blank")
    stars(tmp_path / "train.csv", 24, 1)
    run = f"finetune --plugin {plugin} --task ordinal-regression --label stars --train train.csv --eval train.csv"
    run += " --max-length 24 --epochs 1 --batch-size 8 --model"
    main([*run.split(), "blank", "--from-scratch", "--output", "base", "--plan", "here"])
    assert "cpu:" in capsys.readouterr().err
    assert (tmp_path / "base" / "config.json").is_file()
    assert cached() == before, "the plugin's code may change, and nothing that it made is kept"
    main([*run.split(), "base", "--output", "lora", "--lora", "2"])
    answers = []
    for model in ("lora", "lora/adapter"):
        main(
            [
                "predict",
                "--plugin",
                plugin,
                "--model",
                model,
                "--task",
                "ordinal-regression",
                "--input",
                "train.csv",
                "--output",
                f"{model.replace('/', '-')}.jsonl",
                "--label",
                "stars",
            ]
        )
        lines = (tmp_path / f"{model.replace('/', '-')}.jsonl").read_text().splitlines()
        answers.append([json.loads(line)["thresholds"] for line in lines])
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": ("mpl",)}, "its model has no parameters named 'mpl', which its HeadSpec lists; it has mlp"),
        ({"parts": ("classifier",)}, "the parameters do not fit its parts classifier: classifier/bias is missing"),
        ({"classifier": ""}, "its HeadSpec has named_labels and must name their tensor"),
    ],
)
def test_a_head_that_does_not_fit_its_entry_is_refused_before_anything_is_written(
    change, message, plugin, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(plugin)
    HEADS["mean-pooling"] = dataclasses.replace(HEADS["mean-pooling"], **change)
    blank_model(tmp_path / "blank")
    stars(tmp_path / "train.csv", 24, 1)
    run = "finetune --task ordinal-regression --label stars --train train.csv --eval train.csv --from-scratch"
    with pytest.raises(SystemExit) as stop:
        main([*run.split(), "--model", "blank", "--output", "out"])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import nothing_of_this_name", "nothing_of_this"),
    ],
)
def test_a_plugin_that_cannot_be_imported(text, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    if text is not None:
        (tmp_path / "broken_plugin.py").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["inspect", "--plugin", "broken_plugin", "nowhere"])
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err


def test_nothing_that_a_model_directory_names_is_imported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blank_model(tmp_path / "blank")
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    config = json.loads((tmp_path / "blank" / "config.json").read_text())
    config |= {"plugin": "evil", "auto_map": {"AutoModel": "evil.Model"}, "architectures": ["evil.Model"]}
    (tmp_path / "blank" / "config.json").write_text(json.dumps(config))
    (tmp_path / "blank" / "experiment.json").write_text(json.dumps({"experiment": {"plugin": "evil", "task": "evil"}}))
    (tmp_path / "d.csv").write_text("text\na\n")
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--model", "blank", "--input", "d.csv", "--output", "-"])
    assert stop.value.code == 2
    assert "--task evil: is no task" in capsys.readouterr().err


ATTENTION = """
import deberta_jax
from deberta_jax.ops.attention.reference import reference_attention

calls = []

def attend(inputs):
    calls.append(inputs.query.shape)
    return reference_attention(inputs)[0]

deberta_jax.register_attention("mine", attend)
"""


@pytest.mark.slow
def test_an_implementation_of_attention(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_attention.py").write_text(ATTENTION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    blank_model(tmp_path / "blank")
    stars(tmp_path / "train.csv", 24, 1)
    run = "finetune --task text-classification --model blank --from-scratch --label stars --train train.csv"
    run += " --eval train.csv --max-length 16 --epochs 1 --batch-size 8 --output out --dry-run --attention mine"
    assert "attention='mine': expected one of" in refused(run.split(), capsys)
    try:
        main([*run.split(), "--plugin", "my_attention"])
        assert sys.modules["my_attention"].calls
    finally:
        IMPLEMENTATIONS.pop("mine", None)
        sys.modules.pop("my_attention", None)
        plugins.IMPORTED.clear()
    assert json.loads(capsys.readouterr().out)["steps"] == 3
