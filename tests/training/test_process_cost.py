"""What a process of a run costs its machine, by the operating system's count: no more where there are more of them."""

import os
import random
import re
import threading
import time
from pathlib import Path

import pytest

from tests.made import WORDS, blank_model, start, write_table
from tests.training.processes import port

ROWS = 12_000
LONG = pytest.mark.long


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Texts of one megabyte, so that what is read of them stands out of what is read for Python itself."""
    folder = tmp_path_factory.mktemp("cost")
    draw = random.Random(0)
    words = [word for group in WORDS.values() for word in group]
    body = [(" ".join(draw.choices(words, k=draw.randint(8, 40))), draw.choice("ab")) for _ in range(ROWS)]
    write_table(folder / "train.csv", ("sentence", "kind"), body)
    write_table(folder / "eval.csv", ("sentence", "kind"), body[:64])
    blank_model(folder / "blank")
    return folder


def mapped_kb(pid: int, home: Path) -> int:
    """Of files below ``home``, what lies in this process's memory through maps."""
    held, ours = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = str(home) in line
        elif ours and line.startswith("Rss:"):
            held += int(line.split()[1])
    return held


def costs(home: Path, output: Path, processes: int, mesh: str) -> list[dict[str, int]]:
    """Of each process: its highest memory, and the bytes that it read, through calls and through maps."""
    words = [
        "finetune",
        "--model",
        str(home / "blank"),
        "--from-scratch",
        "--train",
        str(home / "train.csv"),
        "--eval",
        str(home / "eval.csv"),
        "--text",
        "sentence",
        "--label",
        "kind",
        "--output",
        str(output),
        "--max-length",
        "48",
        "--epochs",
        "1",
        "--batch-size",
        "400",
        "--log-every",
        "20",
        f"--mesh-{mesh}",
        str(processes),
    ]
    told = ["--coordinator", f"localhost:{port()}", "--processes", str(processes)] if processes > 1 else []
    # Optimized programs, as users run them: it is their memory that is compared.
    flags = "--xla_force_host_platform_device_count=1"
    environment = {"XDG_CACHE_HOME": str(home / "cache"), "XLA_FLAGS": flags}
    # JAX keeps the programs of the first process alone, and compiling takes memory: here all compile.
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    running = [
        start([*words, *told, *(["--process", str(i)] if told else [])], **environment) for i in range(processes)
    ]
    found = [{"memory": 0, "called": 0, "mapped": 0} for _ in running]
    ended = [threading.Thread(target=process.communicate) for process in running]  # their pipes are kept empty
    for thread in ended:
        thread.start()
    while any(thread.is_alive() for thread in ended):
        for process, cost in zip(running, found, strict=True):
            try:
                status, told_io = (Path(f"/proc/{process.pid}/{name}").read_text() for name in ("status", "io"))
                cost["mapped"] = max(cost["mapped"], mapped_kb(process.pid, home) * 1024)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it has ended
            highest = re.search(r"VmHWM:\s+(\d+)", status)
            if highest:
                cost["memory"] = int(highest[1]) * 1024
                cost["called"] = int(re.search(r"rchar: (\d+)", told_io)[1])
        time.sleep(0.1)
    assert [process.returncode for process in running] == [0] * processes
    return found


@pytest.fixture(scope="module")
def alone(home) -> dict[str, int]:
    costs(home, home / "first", 1, "data")  # reads the table and leaves the tokens behind
    (cost,) = costs(home, home / "alone", 1, "data")
    assert cost["mapped"] > os.stat(home / "train.csv").st_size / 4, "the tokens are read through a map, and counted"
    return cost


@LONG
@pytest.mark.parametrize(("processes", "mesh"), [(2, "data"), (4, "data"), (2, "fsdp"), (4, "fsdp")])
def test_more_processes_cost_each_no_more(home, alone, tmp_path, processes, mesh):
    for cost in costs(home, tmp_path / "run", processes, mesh):
        print(processes, mesh, {name: round(cost[name] / alone[name], 3) for name in cost}, cost)
        for name in cost:
            assert cost[name] <= 1.1 * alone[name], (name, cost, alone)
