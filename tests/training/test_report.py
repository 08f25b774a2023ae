"""Reports and plots: of any labels, made again where they are missing, and never the end of a run."""

import json
import logging
import re
import shutil

import numpy as np
import pytest

from deberta_jax.tasks.text_classification import confusion
from deberta_jax.training import plots
from deberta_jax.training.finite import finite_json
from deberta_jax.training.plots import plain
from deberta_jax.training.report import write_report
from deberta_jax.training.seeds import has_collapsed
from tests.made import stdout_of

ODD = [
    "$\\frac{$",
    "$$",
    "\\$a$",
    "a$b",
    "\U0001f600\U0001f4a9",
    "\x1b[31mred\x07",
    "x" * 3000,
    "<b>&",
    "ب‏ع",
    "a\nb\tc",
    "_",
    "",
]


@pytest.fixture
def run(tmp_path):
    """The files of a finished run whose labels are odd."""
    experiment = {"job": "Finetune", "experiment": {"seed": 0, "metric": ""}, "runtime": {}, "data": {"a": "0"}}
    log = [{"step": 1, "loss": 0.5}, {"step": 2, "eval": {"accuracy": 0.5, "loss": None}}]
    sessions = [{"run": "a", "from_step": 0}, {"to_step": 2}]
    details = confusion(np.arange(len(ODD)), np.zeros(len(ODD), int), ODD)
    details |= {"wrong": [["f, line 1", label, label, 0.5] for label in ODD], "by_label": {k: [0.0] * 4 for k in ODD}}
    for name, value in (("experiment", experiment), ("result", {"step": 2, "metrics": {"accuracy": 0.5}})):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    (tmp_path / "evaluation.json").write_text(json.dumps(details))
    for name, lines in (("log", log), ("sessions", sessions)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_labels_of_any_characters(run, caplog):
    """Warnings are errors in tests, so none is given for a character that the font lacks."""
    with caplog.at_level(logging.WARNING):
        write_report(run, "accuracy")
    assert not caplog.records
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "&lt;b&gt;&amp;" in page
    assert "<b>&" not in page


def test_names_in_plots_are_printable_short_and_no_mathematics():
    for label in ODD:
        shown = plain(label)
        assert shown.isprintable()
        assert len(shown.replace("\\$", "$")) <= 33
        assert not re.search(r"(?<!\\)\$", shown)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("count", [61, 200, 201, 5000])
def test_very_many_labels_take_little_time(run, count):
    rng = np.random.default_rng(0)
    names = [f"label {i}" for i in range(count)]
    truth, guess = rng.integers(0, count, (2, 3000))
    guess[:40] = 7
    truth[:40] = 3
    details = confusion(guess, truth, names)
    (run / "evaluation.json").write_text(json.dumps(details))
    write_report(run, "accuracy")
    assert (run / "report.html").stat().st_size < 2e6
    if count > 200:
        assert details["confused"][0][:2] == ["label 3", "label 7"]
        assert details["predicted_labels"] == len({*guess.tolist()})
        assert "Most often confused" in (run / "report.html").read_text()


def test_a_seed_with_one_answer_is_known_with_few_labels_and_with_many():
    for count in (3, 600):
        names, truth = list(map(str, range(count))), np.arange(count)
        assert has_collapsed({}, confusion(np.full(count, 2), truth, names))
        assert not has_collapsed({}, confusion(truth, truth, names))
    for damaged in ({}, {"confusion": 5}, {"confusion": [1]}, {"predicted_labels": "x"}):
        assert not has_collapsed({"accuracy": 0.5}, damaged)


def test_details_that_are_only_shown_have_null_for_what_is_not_finite():
    value = {"a": [1.0, float("nan"), ["x", float("inf")]], "b": {"c": (None, True, 2)}}
    assert finite_json(value) == {"a": [1.0, None, ["x", None]], "b": {"c": [None, True, 2]}}


DAMAGE = {
    "log.jsonl": ["", "x", "[1]\n", '{"step": "a", "loss": {}}\n'],
    "sessions.jsonl": ["", "\0", '{"a": [[[1]]]}\n'],
    "evaluation.json": [
        "",
        "[]",
        '{"confusion": 5}',
        '{"labels": 1, "confusion": [[1, 2]]}',
        '{"wrong": 7}',
        '{"scatter": [1]}',
    ],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_cost_the_report_alone(run, caplog, name):
    for content in DAMAGE[name]:
        caplog.clear()
        (run / "report.html").unlink(missing_ok=True)
        (run / name).write_text(content)
        with caplog.at_level(logging.WARNING):
            write_report(run, "accuracy")
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == (not (run / "report.html").exists())
        assert all(line.startswith(f"{run / 'report.html'} was not written (") and "\n" not in line for line in told)


def test_what_is_missing_is_made_again(trained, tmp_path, monkeypatch, caplog):
    run = tmp_path / "run"
    shutil.copytree(trained.directory, run)
    (run / "report.html").unlink()
    (run / "curves.png").unlink()
    again = json.loads(stdout_of(trained.task.arguments(run)))
    assert {**again, "output": ""} == {**trained.printed, "output": ""}
    assert (run / "report.html").read_text().count("data:image/png;base64,") == 2
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    # A plot that cannot be drawn is one line, and the run has finished all the same.
    (run / "curves.png").unlink()
    (run / "report.html").unlink()

    def fail(*arguments):
        raise RuntimeError("no font\nat all")

    monkeypatch.setattr(plots, "curves", fail)
    again = json.loads(stdout_of(trained.task.arguments(run)))
    assert {**again, "output": ""} == {**trained.printed, "output": ""}
    assert not (run / "curves.png").exists()
    assert f"{run / 'curves.png'} was not written (RuntimeError: no font at all)" in caplog.text
    assert (run / "report.html").exists()
