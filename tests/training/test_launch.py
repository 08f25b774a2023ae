"""The launch scripts, with stand-ins for the programs that they call: what these are given, and what follows."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[2] / "train" / "launch"


def launched(folder: Path, script: str, *words: str, **programs: str) -> tuple[int, dict[str, list[str]]]:
    """Exit code, and what each program was given; ``programs``: what they do besides, in shell."""
    for name, body in programs.items():
        program = folder / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/{name}.told\n{body}\n')
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    done = subprocess.run(["bash", LAUNCH / script, *words], env=environment, check=False, capture_output=True)
    return done.returncode, {p.stem: p.read_text().splitlines() for p in folder.glob("*.told")}


def test_tpu_workers_get_the_same_words_quoted(tmp_path):
    words = ["finetune", "--text", "a b", "--output", "/shared/$x"]
    code, told = launched(tmp_path, "tpu_pod.sh", "slice", "us-east1-d", *words, gcloud="")
    assert code == 0
    assert told["gcloud"][:5] == ["compute", "tpus", "tpu-vm", "ssh", "slice"]
    assert "--worker=all" in told["gcloud"]
    command = told["gcloud"][told["gcloud"].index("--command") + 1]
    assert shlex.split(command) == ["deberta-jax", *words, "--distributed"]
    assert launched(tmp_path, "tpu_pod.sh", "slice")[0] == 2


@pytest.mark.parametrize(("code", "runs"), [(0, 1), (2, 1), (42, 3), (255, 3)])
def test_tpu_workers_start_again_unless_the_user_must_act(tmp_path, monkeypatch, code, runs):
    monkeypatch.setenv("RESTARTS", "2")
    monkeypatch.setenv("RESTART_SECONDS", "0")
    body = f"echo run >> {tmp_path}/runs; exit {code}"
    assert launched(tmp_path, "tpu_pod.sh", "slice", "us-east1-d", "finetune", gcloud=body)[0] == code
    assert (tmp_path / "runs").read_text().splitlines() == ["run"] * runs


CODES = [(0, False), (143, True), (42, True), (137, True), (2, False), (1, False)]


@pytest.mark.parametrize(("code", "requeued"), CODES)
def test_a_job_whose_time_is_up_asks_to_be_queued_again(tmp_path, code, requeued):
    ended, told = launched(tmp_path, "slurm.sh", "finetune", "--text", "a b", srun=f"exit {code}", scontrol="")
    assert ended == code
    assert told["srun"] == ["--kill-on-bad-exit=1", "deberta-jax", "finetune", "--text", "a b", "--distributed"]
    assert told.get("scontrol") == (["requeue", "77"] if requeued else None)


def test_the_jobset_is_one_job_of_all_hosts():
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4
    (container,) = pod["containers"]
    assert container["command"][0] == "deberta-jax"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    output = next(word.removeprefix("--output=") for word in container["args"] if word.startswith("--output="))
    assert output.startswith(mounts["output"])
    assert pod["terminationGracePeriodSeconds"] >= 60


def test_the_jobset_gives_up_where_the_user_must_act_and_restarts_else():
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    (container,) = job["template"]["spec"]["containers"]
    on = rule["onExitCodes"]
    assert rule["action"] == "FailJob"
    assert (on["containerName"], on["operator"], on["values"]) == (container["name"], "In", [2])
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert jobset["spec"]["failurePolicy"]["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
