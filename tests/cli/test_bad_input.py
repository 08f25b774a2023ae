"""Bad input: one line that begins with ``error:``, exit code 2, nothing written."""

import csv
import dataclasses
import json
import shutil

import pytest

from deberta_jax.cli.main import main
from tests.made import TINY, blank_model, refused, weighted_model, write_table


@pytest.fixture
def bad(task, tmp_path, capsys):
    """Runs ``finetune`` with these arguments changed; the error's line, and a proof that nothing was written."""

    def run(*more):
        output = tmp_path / "output"
        before = sorted(tmp_path.rglob("*"))
        line = refused(task.arguments(output, *map(str, more)), capsys)
        assert sorted(tmp_path.rglob("*")) == before, "nothing is written"
        return line

    return run


HEADER = ("sentence", "kind")
FILES = {
    "missing column": ("a.csv", "text,kind\na,pos\nb,neg\n", "no column 'sentence'"),
    "missing label": ("a.csv", "sentence,type\na,pos\n", "no column 'kind'"),
    "empty": ("a.csv", "", "the file is empty"),
    "header only": ("a.csv", "sentence,kind\n", "the file is empty"),
    "ragged": ("a.csv", "sentence,kind\na,pos\nb\n", "line 3"),
    "not UTF-8": ("a.csv", b"sentence,kind\n\xff,pos\n", "not UTF-8"),
    "one class": ("a.csv", "sentence,kind\na,pos\nb,pos\n", "every row of 'kind' is 'pos'"),
    "no text": ("a.jsonl", '{"sentence": null, "kind": "pos"}\n{"sentence": "a", "kind": "neg"}\n', "line 1"),
    "another ending": ("a.txt", "sentence,kind\na,pos\n", "ending '.txt'"),
    "no table": ("a.jsonl", "sentence,kind\n", "not JSON"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_to_train_on(bad, tmp_path, case):
    name, content, message = FILES[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = bad("--train", path)
    assert message in line
    assert str(path) in line


def test_an_unknown_label_to_evaluate_on(bad, trained, tmp_path, capsys):
    path = write_table(tmp_path / "eval.tsv", HEADER, [("a", "pos"), ("b", "odd")])
    line = bad("--eval", path)
    assert f"{path}, line 3: unknown label 'odd' in 'kind'; known labels: 'neg', 'pos'" in line
    line = refused(
        ["evaluate", "--model", trained.directory, "--data", path, "--text", "sentence", "--label", "kind"], capsys
    )
    assert "line 3: unknown label 'odd'" in line


def test_files_that_are_not_there(bad, tmp_path):
    assert "no such file" in bad("--train", tmp_path / "none.csv")
    assert "no such file" in bad("--eval", tmp_path / "none.csv")
    assert "cannot be read" in bad("--eval", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metric", "bleu"), "--metric bleu: this task has accuracy, f1, matthews_correlation, loss"),
        (("--metric", "pearson"), "--metric pearson"),
        (("--epochs", "0"), "--epochs 0: must be at least 1"),
        (("--batch-size", "0"), "--batch-size 0"),
        (("--max-length", "7"), "--max-length 7"),
        (("--learning-rate", "nan"), "--learning-rate nan"),
        (("--learning-rate", "-1"), "--learning-rate -1"),
        (("--warmup", "-1"), "--warmup -1"),
        (("--weight-decay", "-1"), "--weight-decay -1"),
        (("--clip-norm", "0"), "--clip-norm 0"),
        (("--beta2", "1"), "--beta2 1"),
        (("--dropout", "1"), "--dropout 1"),
        (("--log-every", "0"), "--log-every"),
        (("--task", "translation"), "--task translation: is no task; there are text-classification"),
        (("--data-dir", "x"), "--data-dir: goes with a named --task"),
        (("--task", "mnli", "--data-dir", "none", "--train", ""), "--data-dir none: no file train of mnli there"),
        (("--layer-decay", "0"), "--layer-decay 0"),
        (("--freeze", "nothing/*"), "--freeze nothing/*: matches no parameter"),
        (("--freeze-layers", "3"), "--freeze-layers 3: the model has 2"),
        (("--lora", "4", "--lora-targets", "nothing"), "--lora-targets nothing: matches no kernel"),
        (("--row-length", "9"), "--row-length 9: the longest example has"),
        (("--coordinator", "localhost:1"), "--coordinator, --processes and --process belong together"),
        (("--text", "a", "b", "c"), "--text: give one column, or two for a pair, not 3"),
        (("--model", ""), "--model is missing"),
        (("--output", ""), "--output is missing"),
        (("--mesh-data", "3"), "does not fit 8 devices"),
        (("--mesh-data", "1", "--mesh-fsdp", "1", "--mesh-tensor", "8"), "cannot split"),
        (("--mesh-data", "-2", "--mesh-fsdp", "-2", "--mesh-tensor", "2"), "does not fit 8 devices"),
        (("--attention", "flash"), "attention='flash'"),
    ],
)
def test_values(bad, arguments, message):
    assert message in bad(*arguments)


def with_weights(task, *more):
    """Arguments of a run that reads weights."""
    return [word for word in task.arguments(*more) if word != "--from-scratch"]


def test_models(bad, task, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    output = tmp_path / "output"
    line = refused(with_weights(task, output), capsys)
    assert str(task.blank) in line, "a directory without weights"
    line = refused([*with_weights(task, output), "--model", "deberta-v3-base"], capsys)
    assert "architecture without weights" in line
    assert "--from-scratch" in line
    assert "no such directory" in bad("--model", tmp_path / "nothing")
    assert "no such directory" in bad("--model", "nobody/nothing")
    for verb, file in (("evaluate", "--data"), ("predict", "--input")):
        more = ["--output", tmp_path / "o.jsonl"] if verb == "predict" else []
        line = refused([verb, "--model", "nobody/nothing", file, task.home / "eval.csv", *more], capsys)
        assert "no such directory" in line
    assert not output.exists()


def test_an_id_outside_the_vocabulary(bad, tmp_path):
    blank_model(tmp_path / "small", dataclasses.replace(TINY, vocab_size=100))
    assert "outside the model's vocabulary of 100" in bad("--model", tmp_path / "small")


def test_texts_beyond_the_absolute_positions(bad, tmp_path):
    config = dataclasses.replace(TINY, position_biased_input=True, max_position_embeddings=16)
    blank_model(tmp_path / "short", config)
    # Only a text of the evaluation is too long: found before the first step, not after the first epoch.
    path = write_table(tmp_path / "eval.csv", HEADER, [("ban " * 30, "pos"), ("ban", "neg")])
    train = write_table(tmp_path / "train.csv", HEADER, [("ban", "pos"), ("tell", "neg")])
    line = bad("--model", tmp_path / "short", "--train", train, "--eval", path, "--max-length", "24")
    assert "24 tokens, but this model has absolute positions for 16" in line


def test_a_truncated_file_of_weights(task, tmp_path, capsys):
    model = weighted_model(tmp_path / "model")
    weights = (model / "model.safetensors").read_bytes()
    output = tmp_path / "output"
    for size in (len(weights) - 1, 1000, 4, 0):
        (model / "model.safetensors").write_bytes(weights[:size])
        line = refused([*with_weights(task, output), "--model", str(model)], capsys)
        assert "model.safetensors" in line
        assert not output.exists()


def test_an_output_of_another_run(bad, task, trained, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained.directory.rglob("*")}
    line = refused(task.arguments(trained.directory, "--seed", "1"), capsys)
    assert "holds another run (its seed is 0, now it is 1)" in line
    line = refused(task.arguments(trained.directory, "--learning-rate", "1e-3"), capsys)
    assert "another run (its optimization.learning_rate is 0.003, now it is 0.001)" in line
    changed = tmp_path / "changed"
    shutil.copytree(trained.directory, changed)
    rows = list(csv.reader((task.home / "eval.csv").open(newline="")))
    record = json.loads((changed / "experiment.json").read_text())
    record["data"][str(task.home / "eval.csv")] = "0" * 64
    (changed / "experiment.json").write_text(json.dumps(record))
    assert len(rows) > 1
    assert "eval.csv has changed" in refused(task.arguments(changed), capsys)
    assert {path: path.stat().st_mtime_ns for path in trained.directory.rglob("*")} == before


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"seed": 3}'])
def test_an_output_that_holds_something_else(bad, tmp_path, content):
    output = tmp_path / "output"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    assert "is not empty and holds no run" in bad()
    (output / "experiment.json").write_text(content)
    assert "experiment.json is not a run's" in bad()


def test_an_output_that_cannot_be_a_directory(bad, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file" in bad("--output", tmp_path / "file")
    assert "is a file" in bad("--output", tmp_path / "file" / "deeper" / "output")


def test_verbs_and_flags(capsys, task):
    assert "unknown command 'train'; expected one of prepare, pretrain, finetune, " in refused(["train"], capsys)
    for arguments in (
        ["finetune", "--no-such", "1"],
        ["evaluate"],
        ["predict", "--model", "m"],
        ["finetune", "--dtype", "float16"],
        ["finetune", "--epochs", "many"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert capsys.readouterr().out == ""


def test_evaluate_and_predict(trained, task, tmp_path, capsys):
    model, data = ["--model", trained.directory], task.home / "eval.csv"
    predict = ["predict", *model, "--input", data, "--text", "sentence", "--output"]
    assert "its directory does not exist" in refused([*predict, tmp_path / "none" / "o.jsonl"], capsys)
    assert "is a directory" in refused([*predict, tmp_path], capsys)
    target = tmp_path / "o.jsonl"
    other = ["predict", *model, "--input", data, "--text", "text", "--output", target]
    assert "no column 'text'" in refused(other, capsys)
    for more in (["--batch-size", "0"], ["--max-length", "0"]):
        assert "must be at least" in refused([*predict, target, *more], capsys)
    assert "--text: give one column" in refused(
        ["evaluate", *model, "--data", data, "--text", "kind", "kind", "kind", "--label", "kind"], capsys
    )
    assert list(tmp_path.iterdir()) == []
