"""The exit codes by which a scheduler decides whether to run a command again, of real processes."""

import json
import signal
import time
from pathlib import Path

import pytest

from tests.made import start
from tests.training.processes import port, steps_logged, wait

pytestmark = pytest.mark.system


def code_of(arguments, **environment) -> tuple[int, str]:
    process = start(arguments, **environment)
    _, told = process.communicate(timeout=500)
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, told[-2000:]
    assert "Traceback" not in told
    return process.returncode, lines[0]


# A plugin that stands for a disk which fails while a state is written, and for one that is full.
BROKEN_DISK = """
import errno
from deberta_jax import storage
def fail(*_):
    raise OSError(errno.{name}, "failed", "/disk/state")
storage.write_checksums = fail
"""


@pytest.mark.parametrize(("name", "code"), [("EIO", 42), ("ENOSPC", 2)])
def test_a_state_that_cannot_be_written(task, cache, tmp_path, name, code):
    (tmp_path / "broken_disk.py").write_text(BROKEN_DISK.format(name=name))
    arguments = [*task.arguments(tmp_path / "run"), "--plugin", "broken_disk"]
    found, line = code_of(arguments, PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}", **cache)
    assert found == code
    assert "a state could not be written" in line
    assert "run the same command again" in line


def test_what_the_user_must_change_ends_with_2(task, cache, tmp_path):
    code, line = code_of(task.arguments(tmp_path / "run", "--label", "sort"), **cache)
    assert code == 2
    assert "sort" in line
    code, line = code_of(task.arguments(tmp_path / "run", "--distributed"), **cache)
    assert code == 2
    assert "Give --coordinator HOST:PORT" in line
    assert "--processes N" in line


@pytest.mark.slow  # the client tries for a minute
@pytest.mark.parametrize("option", ["--output", "--compile-cache"])
def test_a_bucket_that_cannot_be_reached_asks_to_be_run_again(task, cache, tmp_path, option):
    pytest.importorskip("gcsfs")
    nobody = f"http://127.0.0.1:{port()}"
    environment = {"STORAGE_EMULATOR_HOST": nobody, "TENSORSTORE_GCS_HTTP_URL": nobody}
    arguments = task.arguments(tmp_path / "run", option, "gs://bucket/there")
    code, line = code_of(arguments, GOOGLE_AUTH_TOKEN_FOR_TESTING="token", **environment, **cache)
    assert code == 42
    assert line.startswith(f"error: {option} gs://bucket/there: cannot be reached")
    assert "run the same command again" in line
    assert not (tmp_path / "run").exists()


def two(task, output: Path, cache, *more: str):
    joined = ["--coordinator", f"localhost:{port()}", "--processes", "2", "--heartbeat", "10", "--mesh-data", "2"]
    return [start([*task.arguments(output, *more), *joined, "--process", str(i)], **cache) for i in range(2)]


@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_survivor_of_a_killed_process_asks_to_be_run_again(task, cache, tmp_path, killed):
    processes = two(task, tmp_path / "run", cache, "--epochs", "400", "--log-every", "1")
    wait(lambda: steps_logged(tmp_path / "run", 4), processes)
    processes[killed].kill()
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert processes[killed].returncode == -signal.SIGKILL
    # JAX's own end at a missed heartbeat may come first: it aborts, or has code 1 where process 0 is gone.
    codes = (42, -signal.SIGABRT) if killed == 1 else (42, 1, -signal.SIGABRT)
    assert processes[1 - killed].returncode in codes, told[1 - killed][-2000:]
    (line,) = (tmp_path / "run" / "sessions.jsonl").read_text().splitlines()
    assert json.loads(line)["processes"] == 2


def test_a_signal_within_an_evaluation_stops_both_and_the_state_is_there(task, cache, tmp_path):
    """The evaluation before the signal has saved; nothing is evaluated to its end first."""
    more = ("--epochs", "400", "--log-every", "1", "--batch-size", "96")  # an evaluation after each step
    processes = two(task, tmp_path / "run", cache, *more)
    wait(lambda: steps_logged(tmp_path / "run", 6), processes)
    processes[1].send_signal(signal.SIGTERM)
    began = time.monotonic()
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], told
    assert time.monotonic() - began < 120
    (state,) = (path for path in (tmp_path / "run" / "state").iterdir() if path.name.isdigit())
    assert (state / "checksums.json").is_file()
