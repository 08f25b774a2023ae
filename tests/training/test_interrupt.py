"""A run that is interrupted and started again ends as one that was not: the same bits, the same log.

Real processes of the command line, on one device each.
"""

import itertools
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.made import Task, log_of, start

pytestmark = pytest.mark.system

# Evaluations every 6 steps; states and log lines at steps that are no multiples of one another or of it.
OFTEN = ("--epochs", "3", "--log-every", "5", "--checkpoint-every", "4")
STEPS = 18


def finish(process: subprocess.Popen[str]) -> str:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return err


def run(task: Task, output: Path, cache: Path, *more: str) -> subprocess.Popen[str]:
    """Programs are compiled once for all processes of the test, which read them from a cache."""
    return start(
        task.arguments(output, *OFTEN, *more),
        JAX_COMPILATION_CACHE_DIR=str(cache),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )


def interrupt(process: subprocess.Popen[str], when: Callable[[], bool], how: signal.Signals) -> int:
    """Sends the signal as soon as ``when`` is true; the exit status."""
    end = time.monotonic() + 300
    while not when():
        assert process.poll() is None, f"it ended first: {process.communicate()}"
        assert time.monotonic() < end
        time.sleep(0.001)
    process.send_signal(how)
    process.communicate(timeout=120)
    return process.returncode


def steps_logged(output: Path, count: int) -> Callable[[], bool]:
    return lambda: (output / "log.jsonl").is_file() and len((output / "log.jsonl").read_text().splitlines()) >= count


def state_being_written(output: Path, after: int) -> Callable[[], bool]:
    """A state is on its way to the disk: there is a temporary directory, or a step without its mark of completion."""

    def writing() -> bool:
        if not (output / "state").is_dir():
            return False
        names = [path.name for path in (output / "state").iterdir()]
        done = [int(name) for name in names if name.isdigit()]
        return any("tmp" in name for name in names) and max(done, default=0) >= after

    return writing


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def unbroken(task, cache, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "run"
    finish(run(task, output, cache))
    return output


def assert_same_run(output: Path, unbroken: Path) -> None:
    assert (output / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()
    for name in ("config.json", "result.json", "spm.model"):
        assert (output / name).read_bytes() == (unbroken / name).read_bytes()
    assert log_of(output) == log_of(unbroken)
    # What an interruption left lying about is gone, and no second file of weights is below.
    assert [path.name for path in output.rglob("model.safetensors")] == ["model.safetensors"]
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in unbroken.iterdir())
    assert [path.name for path in (output / "state").iterdir()] == [str(STEPS)]


def test_sigterm_and_the_same_command_again(task, cache, unbroken, tmp_path):
    output = tmp_path / "run"
    code = interrupt(run(task, output, cache), steps_logged(output, 2), signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert not (output / "result.json").exists()
    (state,) = (output / "state").iterdir()
    assert 5 <= int(state.name) < STEPS
    told = finish(run(task, output, cache))
    assert f"going on from step {state.name} of {STEPS}" in told
    assert_same_run(output, unbroken)


def test_killed_while_a_state_is_written(task, cache, unbroken, tmp_path):
    output = tmp_path / "run"
    assert interrupt(run(task, output, cache), state_being_written(output, 4), signal.SIGKILL) == -signal.SIGKILL
    assert not (output / "result.json").exists()
    told = finish(run(task, output, cache))
    assert "going on from step" in told
    assert_same_run(output, unbroken)


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_interrupted_again_and_again(task, cache, unbroken, tmp_path, how):
    """At moments swept over the whole run, from before the first step on, and a signal more than once."""
    output = tmp_path / "run"
    moments = itertools.cycle([0.0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.8])
    interruptions = 0
    for _ in range(25):
        process = run(task, output, cache)
        directory, begun = output / "state", time.monotonic()
        while process.poll() is None and not directory.is_dir() and time.monotonic() < begun + 300:
            time.sleep(0.001)
        time.sleep(next(moments))
        process.send_signal(how)
        process.communicate(timeout=120)
        if process.returncode == 0:
            break
        interruptions += 1
        # Amid its imports Python or a native library may end in its own way on SIGINT; nothing has begun then.
        assert how == signal.SIGINT or process.returncode in (-how, 128 + how)
    finish(run(task, output, cache))
    assert interruptions >= 3
    assert_same_run(output, unbroken)


@pytest.mark.long
@pytest.mark.parametrize("name", ["experiment.json", ".run.partial-*", "model.safetensors", "curves.png", "log.jsonl"])
def test_killed_as_soon_as_a_file_appears(task, cache, unbroken, tmp_path, name):
    output = tmp_path / "run"
    appeared = lambda: output.is_dir() and any(output.glob(name))
    assert interrupt(run(task, output, cache), appeared, signal.SIGKILL) == -signal.SIGKILL
    finish(run(task, output, cache))
    assert_same_run(output, unbroken)


@pytest.mark.long
def test_killed_in_the_last_evaluation(task, cache, unbroken, tmp_path):
    """The last state is there, the result is not: the run goes on at its very end."""
    output = tmp_path / "run"
    shutil.copytree(unbroken, output)
    (output / "result.json").unlink()
    told = finish(run(task, output, cache))
    assert f"going on from step {STEPS} of {STEPS}" in told
    assert_same_run(output, unbroken)
