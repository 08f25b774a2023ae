"""Several real processes over gloo, and several devices: the same losses, stopped and gone on with anywhere.

Every process is one of the command line's own; nothing here reaches into another.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.made import TINY, Task, binary_files, blank_model, start
from tests.training.processes import curve, finish, port, steps_logged, wait

STEPS = ("--epochs", "9", "--log-every", "1", "--checkpoint-every", "7")  # 54 steps


def begin(task: Task, output: Path, cache, mesh, *more: str, processes: int = 1, devices: int = 1, only: int = -1):
    """The processes of one run, each with so many devices; ``only`` starts no other than that one."""
    names = ("data", "fsdp", "tensor")
    sizes = [word for name, size in zip(names, mesh, strict=True) for word in (f"--mesh-{name}", str(size))]
    arguments = [*task.arguments(output), *STEPS, *sizes, *more]
    if processes == 1:
        return [start(arguments, devices=devices, **cache)]
    told = ["--coordinator", f"localhost:{port()}", "--processes", str(processes), "--heartbeat", "10"]
    return [
        start([*arguments, *told, "--process", str(i)], devices=devices, **cache)
        for i in range(processes)
        if only in (-1, i)
    ]


@pytest.fixture(scope="module")
def single(task, cache, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("single") / "run"
    finish(begin(task, output, cache, (1, 1, 1)))
    assert len(curve(output)) == 54
    return output


LONG = pytest.mark.long
CASES = [
    pytest.param(1, 8, (8, 1, 1), marks=LONG),
    pytest.param(1, 8, (1, 8, 1), marks=LONG),
    pytest.param(1, 4, (1, 1, 4), marks=LONG),
    pytest.param(1, 8, (2, 2, 2), marks=LONG),
    pytest.param(2, 1, (2, 1, 1), marks=LONG),
    pytest.param(2, 2, (1, 2, 2), marks=pytest.mark.system),
    pytest.param(2, 1, (1, 1, 2), marks=LONG),
    pytest.param(4, 1, (1, 4, 1), marks=LONG),
    pytest.param(4, 1, (2, 1, 2), marks=LONG),
    pytest.param(4, 2, (2, 2, 2), marks=LONG),
]


@pytest.mark.parametrize(("processes", "devices", "mesh"), CASES)
def test_the_losses_of_one_device(task, cache, single, tmp_path, processes, devices, mesh):
    output = tmp_path / "run"
    told = finish(begin(task, output, cache, mesh, processes=processes, devices=devices))
    np.testing.assert_allclose(curve(output), curve(single), rtol=1e-5)
    ours, theirs = (json.loads((run / "result.json").read_text()) for run in (output, single))
    assert ours["step"] == theirs["step"]
    assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-4)
    assert (output / "report.html").is_file()
    if processes > 1:
        assert all("process 1: host" not in line for line in told[1:]), "one process speaks"
        assert "process 1: host" in told[0]


@LONG
def test_when_one_of_four_is_killed_the_others_end_with_an_error(task, cache, tmp_path):
    output = tmp_path / "run"
    processes = begin(task, output, cache, (4, 1, 1), "--epochs", "400", processes=4)
    wait(lambda: steps_logged(output, 8), processes)
    processes[2].kill()
    killed = time.monotonic()
    told = [process.communicate(timeout=90)[1] for process in processes]
    assert time.monotonic() - killed < 60
    for i, (process, text) in enumerate(zip(processes, told, strict=True)):
        assert process.returncode != 0
        if i != 2:
            assert "has lost another one" in text or "heartbeat" in text.lower(), text[-2000:]


@LONG
@pytest.mark.parametrize("who", [0, 1])
def test_a_signal_to_one_stops_all_and_one_process_goes_on(task, cache, single, tmp_path, who):
    output = tmp_path / "run"
    processes = begin(task, output, cache, (2, 1, 1), processes=2)
    wait(lambda: steps_logged(output, 10), processes)
    processes[who].send_signal(signal.SIGTERM)
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2, told
    (state,) = (output / "state").iterdir()
    assert 5 < int(state.name) < 54
    told = finish(begin(task, output, cache, (1, 1, 1)))
    assert f"going on from step {state.name} of 54" in told[0]
    np.testing.assert_allclose(curve(output), curve(single), rtol=1e-5)


@pytest.fixture(scope="module")
def half(task, cache, tmp_path_factory):
    """Runs on many devices, stopped near the middle."""
    home = tmp_path_factory.mktemp("half")
    for name, processes, devices, mesh in (("one", 1, 8, (2, 2, 2)), ("four", 4, 1, (2, 2, 1))):
        running = begin(task, home / name, cache, mesh, processes=processes, devices=devices)
        wait(lambda name=name: steps_logged(home / name, 25), running)
        running[0].send_signal(signal.SIGTERM)
        assert [p.communicate(timeout=300) and p.returncode for p in running] == [143] * processes
    return home


@LONG
@pytest.mark.parametrize(
    ("begun", "processes", "devices", "mesh"),
    [
        ("one", 1, 1, (1, 1, 1)),
        ("one", 1, 2, (1, 2, 1)),
        ("one", 1, 4, (2, 1, 2)),
        ("one", 2, 2, (2, 2, 1)),
        ("four", 2, 1, (2, 1, 1)),
        ("four", 1, 1, (1, 1, 1)),
    ],
)
def test_a_run_goes_on_anywhere(task, cache, single, half, tmp_path, begun, processes, devices, mesh):
    output = tmp_path / "run"
    shutil.copytree(half / begun, output)
    before = len(curve(output))
    finish(begin(task, output, cache, mesh, processes=processes, devices=devices))
    assert 10 < before < 54 == len(curve(output))
    np.testing.assert_allclose(curve(output), curve(single), rtol=1e-5)


@pytest.mark.slow
def test_a_process_that_does_not_come_is_named(task, tmp_path, cache):
    began = time.monotonic()
    (process,) = begin(task, tmp_path / "run", cache, (2, 1, 1), "--deadline", "6", processes=2, only=0)
    _, told = process.communicate(timeout=120)
    assert time.monotonic() - began < 60
    assert process.returncode == 42
    line = told.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "process 0 of 2 is here, but another one did not arrive within 6 s" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.system
def test_processes_with_other_numbers_of_devices_are_refused(task, tmp_path, cache):
    joined = ["--coordinator", f"localhost:{port()}", "--processes", "2", "--mesh-data", "3"]
    processes = [
        start([*task.arguments(tmp_path / "run"), *joined, "--process", str(i)], devices=i + 1, **cache)
        for i in range(2)
    ]
    for process in processes:
        _, text = process.communicate(timeout=300)
        assert process.returncode == 2
        (line,) = (line for line in text.splitlines() if line.startswith("error: "))
        assert line == "error: process 1 has devices 2, process 0 has 1; all must be alike"
    assert not (tmp_path / "run").exists()


@pytest.mark.system
def test_processes_that_do_not_share_a_disk_are_refused(task, tmp_path, cache):
    """As on hosts whose disks are their own: what the first writes the second never sees."""
    told = ["--coordinator", f"localhost:{port()}", "--processes", "2", "--mesh-data", "2"]
    processes = [
        start([*task.arguments(tmp_path / f"disk{i}" / "run"), *told, "--process", str(i)], **cache) for i in range(2)
    ]
    for process in processes:
        _, text = process.communicate(timeout=300)
        assert process.returncode == 2
        assert "process 1 does not see there what process 0 sees" in text.strip().splitlines()[-1], text[-2000:]


def small_disk(directory: Path, kilobytes: int) -> None:
    """Mounts one; ``umount`` when done."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", directory]
    if os.geteuid() or subprocess.run(command, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")


@pytest.mark.system
@pytest.mark.parametrize(
    ("kilobytes", "more"),
    [(100, ()), pytest.param(6000, ("--keep-state", "1000", "--checkpoint-every", "1"), marks=LONG)],
    ids=["no room for a model", "room for some states"],
)
def test_a_full_disk_stops_with_an_error_and_the_last_state_is_whole(task, cache, tmp_path, kilobytes, more):
    disk = tmp_path / "disk"
    small_disk(disk, kilobytes)
    try:
        output = disk / "run"
        (process,) = begin(task, output, cache, (1, 1, 1), *more)
        _, told = process.communicate(timeout=600)
        assert process.returncode == 2, told[-3000:]
        assert "Traceback" not in told
        (line,) = (line for line in told.splitlines() if line.startswith("error: "))
        assert "could not be written" in line or "No space left" in line
        shutil.copytree(output, tmp_path / "roomy")
        told = finish(begin(task, tmp_path / "roomy", cache, (1, 1, 1)))[0]
        assert kilobytes == 100 or "going on from step" in told
        assert len(curve(tmp_path / "roomy")) == 54
    finally:
        subprocess.run(["umount", disk], check=True)


def with_dropout(home: Path) -> Task:
    """A task of which the least change of a random number changes the end."""
    blank_model(home / "blank", dataclasses.replace(TINY, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1))
    binary_files(home)
    return Task(home)


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.parametrize("interruptions", [1, pytest.param(20, marks=LONG)])
def test_stopped_at_random_moments_all_processes_end_with_the_same_bits(cache, tmp_path, interruptions):
    task, draw = with_dropout(tmp_path), random.Random(interruptions)
    long = ("--epochs", str(max(8, 2 * interruptions)), "--checkpoint-every", "3")
    on = lambda output: begin(task, output, cache, (1, 2, 1), *long, processes=2)
    finish(on(tmp_path / "unbroken"))
    output, ends = tmp_path / "run", []
    for _ in range(interruptions):
        running = on(output)
        log = output / "log.jsonl"
        lines = len(log.read_text().splitlines()) if log.is_file() else 0
        wait(lambda running=running, lines=lines: steps_logged(output, lines + 1), running)
        time.sleep(draw.uniform(0, 0.3))
        how = draw.choice([signal.SIGKILL, signal.SIGTERM])
        for process in running if how == signal.SIGKILL else draw.sample(running, 1):
            process.send_signal(how)
        ends += [(how, p.communicate(timeout=300) and p.returncode) for p in running]
    assert all(code in (-signal.SIGKILL, 128 + signal.SIGTERM) for _, code in ends), ends
    finish(on(output))
    assert curve(output) == curve(tmp_path / "unbroken")
    ours, theirs = ((run / "model.safetensors").read_bytes() for run in (output, tmp_path / "unbroken"))
    assert ours == theirs
