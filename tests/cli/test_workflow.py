"""The whole workflow by the command line: fine-tune, evaluate, predict, load again."""

import dataclasses
import io
import json
import sys

import jax
import numpy as np
import pytest

import deberta_jax
from deberta_jax.cli.main import main
from deberta_jax.data.labels import LabelSpec
from deberta_jax.tasks import TextTask
from tests.made import MAX_LENGTH, TINY, blank_model, log_of, rows, start, stdout_of, weighted_model, write_table


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_learns_the_task_and_leaves_a_model_directory(trained):
    directory, printed = trained.directory, trained.printed
    assert printed["accuracy"] >= 0.85, "the majority has 0.5"
    log = log_of(directory)
    assert [entry["step"] for entry in log if "loss" in entry] == [4, 8, 12, 16, 20, 24]
    assert [entry["step"] for entry in log if "eval" in entry] == [6, 12, 18, 24]
    assert log[-1]["eval"]["loss"] < log[0]["loss"]
    assert all(
        entry.keys() == {"step", "loss", "gradient_norm", "padding", "learning_rate"}
        for entry in log
        if "eval" not in entry
    )
    best = max((entry for entry in log if "eval" in entry), key=lambda entry: entry["eval"]["accuracy"])
    assert {"step": best["step"], **best["eval"]} == {k: v for k, v in printed.items() if k != "output"}
    assert json.loads((directory / "result.json").read_text()) == {"step": best["step"], "metrics": best["eval"]}
    assert (directory / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    experiment = json.loads((directory / "experiment.json").read_text())
    assert experiment["job"] == "Finetune"
    assert experiment["experiment"]["text"] == ["sentence"]
    assert experiment["experiment"]["optimization"]["learning_rate"] == 3e-3
    assert json.loads((directory / "config.json").read_text())["id2label"] == {"0": "neg", "1": "pos"}
    assert [path.name for path in directory.rglob("*.safetensors")] == ["model.safetensors"]
    deberta_jax.load_tokenizer(str(directory))


def test_after_its_end_the_same_command_does_nothing(trained, capsys):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in trained.directory.rglob("*")}
    main(trained.task.arguments(trained.directory))
    out, err = capsys.readouterr()
    assert json.loads(out) == trained.printed
    assert "has finished" in err
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in trained.directory.rglob("*")} == before


@pytest.mark.slow
def test_predict_reproduces_the_accuracy_of_evaluate(trained, task, tmp_path, monkeypatch, capsys):
    model, data = ["--model", str(trained.directory)], str(task.home / "eval.csv")
    printed = stdout_of(["evaluate", *model, "--data", data, "--text", "sentence", "--label", "kind"])
    assert printed.count("\n") == 1
    metrics = json.loads(printed)
    assert metrics.keys() == {"accuracy", "f1", "matthews_correlation", "loss"}
    assert {k: pytest.approx(trained.printed[k], abs=1e-5) for k in metrics} == metrics
    predicted = tmp_path / "predicted.jsonl"
    main(["predict", *model, "--input", data, "--text", "sentence", "--output", str(predicted)])
    found = lines(predicted.read_text())
    truth = rows(40, seed=2)
    assert np.mean([row["label"] == label for row, (_, label) in zip(found, truth, strict=True)]) == metrics["accuracy"]
    surprise = [-np.log(row["probabilities"][label]) for row, (_, label) in zip(found, truth, strict=True)]
    assert np.mean(surprise) == pytest.approx(metrics["loss"], rel=1e-5)
    for row in found:
        assert row.keys() == {"label", "probabilities"}
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert max(row["probabilities"], key=row["probabilities"].get) == row["label"]
    assert [path.name for path in tmp_path.iterdir()] == ["predicted.jsonl"]

    # Standard input and output, the rows in another order: each answer stays with its text.
    order = np.random.default_rng(0).permutation(40)
    stream = "".join(json.dumps({"sentence": truth[i][0]}) + "\n" for i in order)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stream.encode())))
    capsys.readouterr()
    main(["predict", *model, "--input", "-", "--text", "sentence", "--output", "-"])
    again = lines(capsys.readouterr().out)
    for row, i in zip(again, order, strict=True):
        assert row["label"] == found[i]["label"]
        assert row["probabilities"] == pytest.approx(found[i]["probabilities"], abs=1e-5)


def test_a_saved_model_is_loaded_to_the_bit(trained, tmp_path):
    model, params = deberta_jax.from_pretrained(trained.directory, head="sequence-classification")
    deberta_jax.save_pretrained(tmp_path / "copy", model, params)
    _, again = deberta_jax.from_pretrained(tmp_path / "copy", head="sequence-classification")
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), params, again))
    name = "model.safetensors"
    assert (tmp_path / "copy" / name).read_bytes() == (trained.directory / name).read_bytes()


@pytest.mark.slow
@pytest.mark.system
def test_three_classes_of_pairs_from_jsonl_in_bfloat16(task, tmp_path, one_device):
    body = [(*text.split(" ", 1), label) for text, label in rows(96, 3, seed=11)]
    train = write_table(tmp_path / "train.jsonl", ("head", "rest", "kind"), body)
    held_out = write_table(tmp_path / "eval.jsonl", ("kind", "rest", "head"), [row[::-1] for row in body[:30]])
    run = tmp_path / "run"
    more = [
        "--train",
        str(train),
        "--eval",
        str(held_out),
        "--text",
        "head",
        "rest",
        "--dtype",
        "bfloat16",
        "--seed",
        "1",
        "--max-length",
        "24",
        "--metric",
        "f1",
        "--epochs",
        "8",
    ]
    printed = json.loads(stdout_of(task.arguments(run, *more)))
    assert printed["accuracy"] > 0.7, "the majority has 0.34"
    config = json.loads((run / "config.json").read_text())
    assert config["id2label"] == {"0": "neg", "1": "other", "2": "pos"}
    assert config["dtype"] == "float32", "parameters stay in full precision"
    common = ["--model", str(run), "--text", "head", "rest"]
    metrics = json.loads(
        stdout_of(["evaluate", *common, "--data", str(held_out), "--label", "kind", "--dtype", "bfloat16"])
    )
    assert metrics["accuracy"] == printed["accuracy"]
    assert metrics["f1"] == pytest.approx(printed["f1"])


@pytest.mark.slow
@pytest.mark.system
def test_a_regression_from_tsv_by_a_config_file(tmp_path, capsys, one_device):
    """From a file of weights, whose classifier, of two labels, is initialised again."""
    weights = weighted_model(tmp_path / "weights")
    number = lambda text: sum(word[0] in "bkrm" for word in text.split()) / len(text.split()) * 3 + 0.25
    body = [(text, f"{number(text):.3f}") for text, _ in rows(96, seed=21)]
    train = write_table(tmp_path / "train.tsv", ("text", "much"), body)
    held_out = write_table(tmp_path / "eval.tsv", ("text", "much"), body[:32])
    config = tmp_path / "experiment.py"
    config.write_text(
        "from deberta_jax.training.experiment import Finetune, Optimization\n"
        "def get_config():\n"
        f"    return Finetune(model={str(weights)!r}, train={str(train)!r}, eval={str(held_out)!r}, label='much',\n"
        f"        max_length={MAX_LENGTH}, epochs=1, batch_size=16,\n"
        "        optimization=Optimization(learning_rate=3e-3, weight_decay=0.1))\n"
    )
    run = tmp_path / "run"
    printed = json.loads(stdout_of(["finetune", "--config", str(config), "--output", str(run), "--epochs", "12"]))
    assert "initialised classifier/kernel" in capsys.readouterr().err, "the run says what it did not find"
    assert printed.keys() == {"output", "step", "pearson", "spearman", "loss"}
    assert printed["pearson"] > 0.7
    saved = json.loads((run / "experiment.json").read_text())["experiment"]
    assert saved["epochs"] == 12, "the command line wins over the file"
    assert saved["optimization"]["weight_decay"] == 0.1
    metrics = json.loads(stdout_of(["evaluate", "--model", str(run), "--data", str(held_out), "--label", "much"]))
    assert metrics == pytest.approx({k: printed[k] for k in ("pearson", "spearman", "loss")}, abs=1e-5)
    answers = lines(stdout_of(["predict", "--model", str(run), "--input", str(held_out), "--output", "-"]))
    assert [answer.keys() for answer in answers] == [{"label", "score"}] * 32
    truth = np.array([float(value) for _, value in body[:32]])
    scores = np.array([answer["score"] for answer in answers])
    assert float(((scores - truth) ** 2).mean()) == pytest.approx(metrics["loss"], rel=1e-4)


def test_the_models_own_order_of_labels_is_kept():
    """A classifier that was trained in another order goes on as what it is."""
    task = TextTask(("text",), ("label",), LabelSpec("single_label_classification", ("neg", "pos")))
    names = lambda *own: task.with_labels_of(dataclasses.replace(TINY, id2label=own)).configure(TINY).id2label
    assert names("pos", "neg") == ("pos", "neg")
    assert names("pos", "other") == ("neg", "pos")


@pytest.mark.system
def test_the_command_in_a_process_of_its_own(trained, task):
    """Standard output has the one JSON object and nothing else."""
    process = start(
        [
            "evaluate",
            "--model",
            str(trained.directory),
            "--data",
            str(task.home / "eval.csv"),
            "--text",
            "sentence",
            "--label",
            "kind",
        ]
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out)["accuracy"] == trained.printed["accuracy"]
    process = start(
        ["evaluate", "--model", str(blank_model(task.home / "bare")), "--data", str(task.home / "eval.csv")]
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
