"""Waits for the processes of runs, and reads what they logged."""

import json
import socket
import subprocess
import time
from pathlib import Path


def port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    told = [process.communicate(timeout=900)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), told
    return told


def curve(output: Path) -> list[float]:
    entries = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def steps_logged(output: Path, count: int) -> bool:
    log = output / "log.jsonl"
    return log.is_file() and len(log.read_text().splitlines()) >= count


def wait(condition, processes, seconds=600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
        time.sleep(0.01)
