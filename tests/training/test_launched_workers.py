"""``tpu_vm.sh`` on two workers that are folders of this machine: real shells, real processes that find each other."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.processes import steps_logged, wait

ROOT = Path(__file__).resolve().parents[2]

# What gcloud does on the workers, here. JAX finds the processes by the variables that SLURM would set. Nothing is
# fetched: of the installation only the checkout is unpacked.
GCLOUD = """#!{python}
import os, shutil, subprocess, sys
words, homes = sys.argv[1:], ["{folder}/worker0", "{folder}/worker1"]
if words[3] == "describe":
    print("ACTIVE")
elif words[3] == "scp":
    for home in homes:
        shutil.copy(words[4], home + "/" + words[5].partition(":")[2])
elif words[3] == "ssh":
    command = words[words.index("--command") + 1]
    command = command.partition(" &&\\n")[0] if "install.sh" in command else command
    found = []
    for i, home in enumerate(homes):
        of_worker = dict(SLURM_JOB_ID="{job}", SLURM_STEP_NODELIST="localhost", SLURM_NTASKS="2", SLURM_LOCALID="0")
        environment = dict(os.environ, HOME=home, SLURM_PROCID=str(i), **of_worker)
        found.append(subprocess.Popen(["bash", "-c", command], cwd=home, env=environment))
    sys.exit(max(process.wait() for process in found))
"""


def free_job() -> int:
    """An id of a job from which JAX makes the number of a port that is free."""
    for found in range(os.getpid() % 2**12, 2**12):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("localhost", 2**16 - 2**12 + found))
            return found
    raise AssertionError("no port is free")


class Slice:
    """Two workers without a common home, and the script that reaches them."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.workers = [folder / "worker0", folder / "worker1"]
        for worker in self.workers:
            worker.mkdir()
        program = folder / "bin" / "gcloud"
        program.parent.mkdir()
        program.write_text(GCLOUD.format(python=sys.executable, folder=folder, job=free_job()))
        program.chmod(0o755)
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            **{"PATH": f"{program.parent}:{os.environ['PATH']}", "JAX_PLATFORMS": "cpu", "RESTART_SECONDS": "0"},
            # Of a flag given twice the last one holds.
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1",
            **environment,
        }

    def __call__(self, *words: str) -> list[str]:
        command = [ROOT / "train" / "launch" / "tpu_vm.sh", "slice", "zone", *words]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def install(self) -> None:
        self("install")
        for worker in self.workers:
            program = worker / "deberta_jax" / "env" / "bin" / "deberta-jax"
            program.parent.mkdir(parents=True)
            program.write_text(f'#!/bin/sh\nexec {sys.executable} -m deberta_jax "$@"\n')  # of the copied checkout
            program.chmod(0o755)


def child_of(process: int) -> int:
    return int(Path(f"/proc/{process}/task/{process}/children").read_text().split()[0])


@pytest.mark.long
@pytest.mark.system
def test_a_detached_run_goes_on_when_a_worker_is_killed(task, cache, tmp_path):
    workers = Slice(tmp_path, cache)
    workers.install()
    (tmp_path / "tokens").write_text("TOKEN=secret")
    workers("secrets", str(tmp_path / "tokens"))
    assert all((w / "deberta_jax").stat().st_mode & 0o077 == 0 for w in workers.workers)

    table = workers("run", "preflight", "--output", str(tmp_path / "run"), "--mesh-data", "2", "--deadline", "200")
    assert [line.split()[0] for line in table if line[:1].isdigit()] == ["0", "1"], table
    assert table[-1] == "all checks passed"
    assert not (tmp_path / "run").exists()

    more = ("--epochs", "12", "--log-every", "1", "--heartbeat", "10", "--mesh-data", "2")
    assert workers("start", *task.arguments(tmp_path / "run"), *more) == ["started"] * 2
    try:
        wait(lambda: steps_logged(tmp_path / "run", 8), [])
        assert workers("status") == ["running"] * 2
        retry = int((workers.workers[1] / "deberta_jax" / "run" / "command").read_text())
        run = child_of(retry)
        assert "TOKEN=secret" in Path(f"/proc/{run}/environ").read_text().split("\0")
        assert "secret" not in Path(f"/proc/{run}/cmdline").read_text()
        os.kill(run, signal.SIGKILL)
        wait(lambda: workers("status") == ["ended 0"] * 2, [])
    finally:
        workers("stop")
    log = (workers.workers[1] / "deberta_jax" / "run" / "log").read_text()
    assert "attempt 1 ended with code 137" in log
    sessions = [json.loads(line) for line in (tmp_path / "run" / "sessions.jsonl").read_text().splitlines()]
    assert [session["processes"] for session in sessions] == [2, 2]
    assert (tmp_path / "run" / "result.json").is_file()
