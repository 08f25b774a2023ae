"""Damaged or missing files in a run's directory: one line that says what to delete, or made again."""

import json
import logging
import os
import shutil

import pytest

from deberta_jax.errors import InputError
from deberta_jax.storage import append_json_line, read_json_lines
from deberta_jax.training.directory import check_directory
from deberta_jax.training.logging import RunLog
from tests.made import refused, stdout_of


def as_directory(path):
    path.unlink()
    path.mkdir()


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def as_loop(path):
    path.unlink()
    path.symlink_to(path)


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "wrong type": lambda path: path.write_text("[1, 2]"),
    "wrong fields": lambda path: path.write_text('{"job": 1, "step": "x", "metrics": [], "experiment": 5, "data": []}'),
    "wrong values": lambda path: path.write_text(
        '{"job": "Finetune", "step": 1, "metrics": {"loss": "\\u001b[31m"}, "experiment": {"seed": {}}, "data": {}}'
    ),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "deep": lambda path: path.write_text('{"a":' * 100_000),
    "a long number": lambda path: path.write_text('{"step": 1' + "0" * 10_000 + "}"),
    "a directory": as_directory,
    "a pipe": as_pipe,
    "a loop": as_loop,
}
NO_FILE = {"a directory", "a pipe", "a loop"}
# What is only shown is made again, or passed over; what says which run this is, and how it ended, is not guessed.
NEEDED = {
    "experiment.json": {*DAMAGE},
    "result.json": {*DAMAGE} - {"missing"},
    "model.safetensors": {"missing", "empty", "cut"} | NO_FILE,
    "log.jsonl": NO_FILE,
    "sessions.jsonl": NO_FILE,
    "evaluation.json": NO_FILE,
    "report.html": NO_FILE,
    "curves.png": NO_FILE,
}


@pytest.mark.parametrize("name", NEEDED)
def test_a_finished_run_with_a_damaged_file(trained, tmp_path, capsys, name):
    whole = json.loads(stdout_of(trained.task.arguments(trained.directory)))
    for kind, damage in DAMAGE.items():
        if name == "result.json" and kind == "missing":
            continue  # the run goes on from its last state, which test_interrupt proves
        run = tmp_path / kind.replace(" ", "-")
        shutil.copytree(trained.directory, run, ignore=shutil.ignore_patterns("state"))
        damage(run / name)
        before = sorted(path.name for path in run.iterdir())
        if kind in NEEDED[name]:
            line = refused(trained.task.arguments(run), capsys)
            assert str(run) in line, kind
            assert name in line or name == "experiment.json", kind
            assert "delete" in line or "give another directory" in line, kind
            assert "\x1b" not in line
            assert len(line) < 4100
            assert sorted(path.name for path in run.iterdir()) == before
        else:
            found = json.loads(stdout_of(trained.task.arguments(run)))
            assert {**found, "output": ""} == {**whole, "output": ""}, kind
        shutil.rmtree(run)


def test_records_of_other_programs_are_compared_without_a_traceback(tmp_path):
    record = {"job": "Finetune", "experiment": {"seed": 0, "a": {"b": 1}}, "data": {}, "runtime": {"resume": "auto"}}
    for experiment in ({"seed": 0, "a": 5}, {"seed": [0] * 10**5}, {"a": {"b": {"c": 1}}}, {"x" * 10**5: 1}):
        (tmp_path / "experiment.json").write_text(json.dumps(record | {"experiment": experiment}))
        with pytest.raises(InputError, match="holds another run") as raised:
            check_directory(tmp_path, record)
        assert len(str(raised.value)) < 1000


def test_a_log_that_is_damaged_in_the_middle_is_kept(tmp_path, caplog):
    lines = [json.dumps({"step": step, "loss": 0.5}) for step in range(1, 7)]
    damaged = "\n".join([*lines[:2], lines[2][:-4], *lines[3:]]) + "\n"
    (tmp_path / "log.jsonl").write_text(damaged)
    with caplog.at_level(logging.WARNING):
        RunLog(tmp_path, 9, 2, lambda step: 0.0, start=6).close()
    assert "is damaged after line 2; the whole file is kept as log.jsonl.damaged" in caplog.text
    assert (tmp_path / "log.jsonl.damaged").read_text() == damaged
    assert [entry["step"] for entry in read_json_lines(tmp_path / "log.jsonl")] == [1, 2]
    # What has another form is no line of a log, and a line that a kill cut short is no damage.
    odd = [{"step": "x", "loss": 1}, {"loss": 1}, {"step": 1, "eval": [1]}, {"step": 1, "loss": {}}]
    for entry in odd:
        (tmp_path / "log.jsonl").write_text(json.dumps(entry) + "\n" + lines[0][:5])
        RunLog(tmp_path, 9, 2, lambda step: 0.0, start=6).close()
        assert (tmp_path / "log.jsonl").read_text() == ""


def test_a_line_after_one_that_was_cut_short_begins_anew(tmp_path):
    path = tmp_path / "sessions.jsonl"
    append_json_line(path, {"a": 1})
    path.write_bytes(path.read_bytes() + b'{"b": ')
    append_json_line(path, {"c": 3})
    append_json_line(path, {"d": 4})
    assert path.read_text().splitlines() == ['{"a": 1}', '{"b": ', '{"c": 3}', '{"d": 4}']
