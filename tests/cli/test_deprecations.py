"""Whole commands with every deprecation an error: what a next release of a library will remove is not relied on."""

import signal
import time

import pytest

from tests.made import start

pytestmark = pytest.mark.system


def finish(arguments: list[str]) -> str:
    """Returns what the command logs."""
    process = start(arguments)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    return errors


@pytest.mark.slow
def test_training_resuming_predicting_and_converting_use_nothing_deprecated(task, tmp_path):
    run, log = tmp_path / "run", tmp_path / "run" / "log.jsonl"
    arguments = task.arguments(run, "--epochs", "40", "--log-every", "1", "--checkpoint-every", "5")
    first, end = start(arguments), time.monotonic() + 300
    while not (log.is_file() and len(log.read_text().splitlines()) >= 8):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=300)
    assert first.returncode == 128 + signal.SIGTERM, errors[-3000:]
    assert "of 240" in finish(arguments)
    assert (run / "report.html").is_file()

    answers = tmp_path / "answers.jsonl"
    finish(["predict", "--model", str(run), "--input", str(task.home / "eval.csv"), "--output", str(answers)])
    assert len(answers.read_text().splitlines()) == 40
    finish(["convert", str(run), str(tmp_path / "orbax"), "--to", "orbax"])
    finish(["convert", str(tmp_path / "orbax"), str(tmp_path / "again"), "--to", "hf"])
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
