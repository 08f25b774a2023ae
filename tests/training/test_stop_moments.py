"""SIGTERM at twenty moments of a run: in steps, evaluations, exports and saves. None is seen in the result.

How long each stop took is written into the report of the tests (``--junit-xml``). A plugin of the process
sends it the signal when a function is called, so that each moment is met exactly.
"""

import signal
import time
from pathlib import Path

import pytest

from tests.made import Task, log_of, start

pytestmark = [pytest.mark.system, pytest.mark.long]

PLUGIN = """
import functools, os, signal, time
from pathlib import Path
from deberta_jax import storage
from deberta_jax.inference import predict
from deberta_jax.training import checkpoints, finetuning, loop

owner, name, number, after = {owner}, {name!r}, {number}, {after}
mark, real, calls = Path(os.environ["MARK"]), getattr({owner}, {name!r}), 0

def send():
    mark.write_text(str(time.monotonic()))
    os.kill(os.getpid(), signal.SIGTERM)

@functools.wraps(real)
def watched(*args, **kwargs):
    global calls
    calls += 1
    now = calls == number and not mark.exists()
    if now and not after:
        send()
    found = real(*args, **kwargs)
    if now and after:
        send()
    return found

setattr(owner, name, watched)
"""
STEP, BATCH = ("loop", "global_batch"), ("predict", "global_batch")
EXPORT, SUMS, SAVE = (
    ("finetuning", "save_pretrained"),
    ("storage", "write_checksums"),
    ("checkpoints.Checkpoints", "save"),
)
# Function, number of the call, and whether the signal comes after it. There are 18 steps, and 3 evaluations.
MOMENTS = [
    *((STEP, number, after) for number, after in ((1, False), (4, True), (6, True), (11, False), (18, True))),
    *((BATCH, number, after) for number, after in ((1, False), (2, True), (3, True), (4, False), (5, True))),
    *((EXPORT, 1, after) for after in (False, True)),
    *((SUMS, number, after) for number, after in ((1, False), (1, True), (2, False), (3, True))),
    *((SAVE, number, after) for number, after in ((1, False), (1, True), (2, False), (3, True))),
]


def begin(task: Task, output: Path, cache: dict[str, str], *more: str, **environment: str):
    words = ("--epochs", "3", "--log-every", "5", "--checkpoint-every", "4", *more)
    return start(task.arguments(output, *words), **cache, **environment)


@pytest.fixture(scope="module")
def unbroken(task, cache, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "run"
    process = begin(task, output, cache)
    assert process.wait(300) == 0, process.communicate()
    return output


def test_there_are_twenty():
    assert len(MOMENTS) == len(set(MOMENTS)) == 20


@pytest.mark.parametrize(("function", "number", "after"), MOMENTS)
def test_the_run_stops_and_goes_on_to_the_same_bits(
    task, cache, unbroken, tmp_path, record_property, function, number, after
):
    output, mark = tmp_path / "run", tmp_path / "mark"
    owner, name = function
    (tmp_path / "stopping.py").write_text(PLUGIN.format(owner=owner, name=name, number=number, after=after))
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    process = begin(task, output, cache, "--plugin", "stopping", PYTHONPATH=path, MARK=str(mark))
    _, told = process.communicate(timeout=300)
    record_property("seconds to stop", time.monotonic() - float(mark.read_text()))
    assert process.returncode == 128 + signal.SIGTERM, told[-2000:]
    assert not (output / "result.json").exists()

    process = begin(task, output, cache)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told[-2000:]
    for file in ("model.safetensors", "config.json", "result.json", "evaluation.json"):
        assert (output / file).read_bytes() == (unbroken / file).read_bytes(), file
    assert log_of(output) == log_of(unbroken)
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in unbroken.iterdir())
