"""Runs without a saved training state: the same results, and what a stop costs."""

import json
import logging
import shutil
import signal

import pytest

from deberta_jax.cli.main import main
from deberta_jax.cli.output import exit_stopped
from deberta_jax.training import Finetune, RunOptions
from tests.made import log_of, stdout_of


@pytest.mark.system
def test_without_states_a_run_ends_the_same_and_begins_again_when_it_is_stopped(task, trained, tmp_path, capsys):
    output = tmp_path / "run"
    arguments = [*task.arguments(output), "--keep-state", "0"]
    printed = json.loads(stdout_of(arguments))
    assert {**printed, "output": ""} == {**trained.printed, "output": ""}
    assert log_of(output) == log_of(trained.directory)
    assert not (output / "state").exists()
    assert "if this run is stopped, it begins again at the first step" in capsys.readouterr().err

    assert json.loads(stdout_of(arguments)) == printed, "a finished run is not repeated"
    (output / "result.json").unlink()  # as if it had been stopped before its end
    assert json.loads(stdout_of(arguments)) == printed
    sessions = [json.loads(line) for line in (output / "sessions.jsonl").read_text().splitlines()]
    assert [(s["from_step"], s["to_step"]) for s in sessions] == [(0, 24), (0, 24)]
    assert log_of(output) == log_of(trained.directory)


def test_fewer_states_than_none_are_refused(task, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(task.arguments(tmp_path / "run", "--keep-state", "-1"))
    assert "--keep-state -1: must not be below 0" in capsys.readouterr().err


@pytest.mark.system
def test_states_of_an_earlier_session_are_used_and_removed_at_the_end(task, trained, tmp_path, capsys):
    output = tmp_path / "run"
    shutil.copytree(trained.directory, output)
    (output / "result.json").unlink()
    printed = json.loads(stdout_of([*task.arguments(output), "--keep-state", "0"]))
    assert {**printed, "output": ""} == {**trained.printed, "output": ""}
    assert "it begins again at step 24, of the state that is there" in capsys.readouterr().err
    assert not (output / "state").exists()


@pytest.mark.parametrize(("kept", "words"), [(1, "to go on"), (0, "to begin it again: --keep-state 0 saved no state")])
def test_a_run_that_is_stopped_says_what_the_same_command_does(kept, words, caplog):
    experiment = Finetune(output="run", runtime=RunOptions(keep_state=kept))
    with caplog.at_level(logging.INFO, logger="deberta_jax"), pytest.raises(SystemExit) as stopped:
        exit_stopped(experiment, signal.SIGTERM, 3)
    assert stopped.value.code == 143
    assert f"run: stopped by SIGTERM after step 3; run the same command {words}" in caplog.text
