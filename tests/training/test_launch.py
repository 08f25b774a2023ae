"""The launch scripts, with stand-ins for the programs that they call: what these are given, and what follows."""

import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.system.pages import blocks
from tests.training.processes import wait

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "train" / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))
# What the scripts may use beside the programs that a test stands in for: nothing else is found.
TOOLS = ("bash", "sh", "cat", "chmod", "dirname", "grep", "mktemp", "rm", "sed", "seq", "sleep", "sort", "tail", "tar")
TOOLS += ("env", "gzip", "mkdir", "mv", "nohup", "setsid", "touch")


class Machine:
    """A folder whose programs are the only ones; each call of a stand-in is one line of JSON in ``calls``."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.calls = folder / "calls"
        for name in TOOLS:
            (folder / name).symlink_to(next(p for d in ("/bin", "/usr/bin") if (p := Path(d, name)).exists()))

    def stand_in(self, name: str, body: str = "") -> None:
        """A program that records its arguments, and then does ``body``, in shell."""
        program = self.folder / name
        program.write_text(f'#!/bin/sh\n{{ printf "%s\\037" {name} "$@"; echo; }} >> {self.calls}\n{body}\n')
        program.chmod(0o755)

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        home = {"HOME": str(self.folder), "PATH": str(self.folder), **environment}
        return subprocess.run(command, env=home, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)

    def script(self, name: str, *words: str, **environment: str) -> tuple[int, list[list[str]]]:
        """Exit code, and the words of each call."""
        done = self.run("/bin/bash", LAUNCH / name, *words, **environment)
        return done.returncode, self.called()

    def called(self) -> list[list[str]]:
        text = self.calls.read_text() if self.calls.exists() else ""
        return [call.split("\x1f") for call in text.removesuffix("\x1f\n").split("\x1f\n") if call]


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid_and_say_how_they_are_used(machine, script):
    assert subprocess.run(["bash", "-n", LAUNCH / script], check=False).returncode == 0
    assert os.access(LAUNCH / script, os.X_OK)
    if script != "slurm.sh":
        done = machine.run("/bin/bash", LAUNCH / script)
        assert done.returncode == 2
        assert f"train/launch/{script} " in done.stderr
        assert not machine.called()


ENDS = [(0, 1), (2, 1), (3, 1), (42, 3), (137, 3), (255, 3)]


@pytest.mark.parametrize(("code", "runs"), ENDS)
def test_a_command_is_run_again_unless_it_is_done_or_the_user_must_act(machine, code, runs):
    machine.stand_in("train", f"exit {code}")
    ended, calls = machine.script("retry.sh", "train", "a b", "$x", RESTARTS="2", RESTART_SECONDS="0")
    assert ended == code
    assert calls == [["train", "a b", "$x"]] * runs


def test_failures_that_nobody_foresaw_are_tried_a_few_times(machine):
    machine.stand_in("train", "exit 1")
    assert machine.script("retry.sh", "train", RESTART_SECONDS="0") == (1, [["train"]] * 4)


def test_a_command_that_succeeds_at_the_third_time(machine):
    machine.stand_in("train", f"[ $(grep -c train {machine.calls}) = 3 ] || exit 42")
    assert machine.script("retry.sh", "train", RESTART_SECONDS="0") == (0, [["train"]] * 3)


# As a run does: it saves its state when it is asked to stop, which takes some time.
SAVES = (
    "trap 'sleep 0.3; echo saved >> {folder}/log; exit 143' TERM; echo on >> {folder}/log; while :; do sleep 0.1; done"
)


def test_a_signal_reaches_the_command_which_is_not_run_again(machine):
    machine.stand_in("train", SAVES.format(folder=machine.folder))
    home = {"HOME": str(machine.folder), "PATH": str(machine.folder)}
    process = subprocess.Popen(["/bin/bash", LAUNCH / "retry.sh", "train"], env=home)
    wait(lambda: (machine.folder / "log").exists(), [process])
    process.terminate()
    assert process.wait(60) == 143
    assert (machine.folder / "log").read_text().split() == ["on", "saved"]


def test_a_detached_run_outlives_the_shell_and_gets_secrets(machine):
    (machine.folder / "deberta_jax").mkdir()
    (machine.folder / "deberta_jax" / "secrets.env").write_text("# tokens\nTOKEN=a $HOME 'b\n\nOTHER=c")
    machine.stand_in("train", f'echo "$TOKEN $OTHER"; until [ -e {machine.folder}/go ]; do sleep 0.05; done')
    detach = lambda *words: machine.run("/bin/bash", LAUNCH / "detach.sh", *words)
    assert detach("status").stdout == "not started\n"
    assert detach("start", "train", "a b").stdout == "started\n"
    assert detach("status").stdout == "running\n"
    assert detach("start", "train").returncode == 2, "one at a time"
    (machine.folder / "go").touch()
    wait(lambda: detach("status").stdout == "ended 0\n", [])
    assert detach("log").stdout == "a $HOME 'b c\n"
    assert machine.called() == [["train", "a b"]], "no secret is an argument"


def test_a_detached_run_is_stopped_in_order(machine):
    machine.stand_in("train", SAVES.format(folder=machine.folder))
    detach = lambda *words: machine.run("/bin/bash", LAUNCH / "detach.sh", *words)
    detach("start", "train")
    wait(lambda: (machine.folder / "log").exists(), [])
    assert detach("stop").stdout == "stopped 143\n"
    assert (machine.folder / "log").read_text().split() == ["on", "saved"]


def test_xpk_gets_one_command_and_no_secret(machine):
    (machine.folder / "tokens").write_text("HF_TOKEN=secret")
    machine.stand_in("xpk")
    words = ["finetune", "--text", "a b", "--output", "/shared/$x"]
    more = {"CLUSTER": "mine", "IMAGE": "place/image", "SLICES": "2", "ENV_FILE": f"{machine.folder}/tokens"}
    code, (call,) = machine.script("xpk.sh", "mnli", "v5litepod-16", *words, **more)
    assert code == 0
    assert call[:3] == ["xpk", "workload", "create"]
    options = dict(zip(call[3::2], call[4::2], strict=True))
    assert shlex.split(options.pop("--command")) == ["exec", "deberta-jax", *words, "--distributed"]
    assert options == {
        "--cluster": "mine",
        "--workload": "mnli",
        "--tpu-type": "v5litepod-16",
        "--num-slices": "2",
        "--docker-image": "place/image",
        "--env-file": f"{machine.folder}/tokens",
        "--max-restarts": "20",
        "--restart-on-exit-codes": "1",
        "--termination-grace-period-seconds": "120",
    }
    machine.calls.unlink()
    code, calls = machine.script("xpk.sh", "mnli", "v5litepod-16", *words, **{**more, "ENV_FILE": "/nowhere"})
    assert (code, calls) == (2, [])


TPU = ["gcloud", "compute", "tpus"]
AT = ["slice", "--zone", "us-east1-d"]
ALL = ["--worker=all"]


def ssh(command: str) -> list[str]:
    return [*TPU, "tpu-vm", "ssh", *AT, *ALL, "--command", command]


def detached(words: str) -> list[str]:
    path = "PATH=$HOME/deberta_jax/env/bin:$PATH"
    return ssh(f"cd deberta_jax/source && {path} train/launch/detach.sh {words}")


ACTIONS = {
    "create v5litepod-16 --spot": [
        [
            *(*TPU, "queued-resources", "create", *AT, "--node-id", "slice", "--accelerator-type", "v5litepod-16"),
            *("--runtime-version", "v2-alpha-tpuv5-lite", "--spot"),
        ]
    ],
    "wait": [[*TPU, "queued-resources", "describe", *AT, "--format", "value(state.state)"]],
    "run preflight --output '/shared/a b'": [
        ssh("cd deberta_jax/source && ../env/bin/deberta-jax preflight --output /shared/a\\ b --distributed ")
    ],
    "start finetune --text 'a b'": [detached("start deberta-jax finetune --text a\\ b --distributed ")],
    "status": [detached("status")],
    "log": [detached("log")],
    "stop": [detached("stop")],
    "delete": [[*TPU, "queued-resources", "delete", *AT, "--force", "--quiet"]],
}


@pytest.mark.parametrize("action", ACTIONS)
def test_what_gcloud_is_asked_for(machine, action):
    machine.stand_in("gcloud", "echo ACTIVE")
    assert machine.script("tpu_vm.sh", "slice", "us-east1-d", *shlex.split(action)) == (0, ACTIONS[action])


def test_an_unknown_tpu_is_refused_and_a_slice_that_is_not_coming_ends_the_wait(machine):
    machine.stand_in("gcloud", "echo SUSPENDED")
    assert machine.script("tpu_vm.sh", "slice", "us-east1-d", "create", "v99-8") == (2, [])
    assert machine.script("tpu_vm.sh", "slice", "us-east1-d", "wait")[0] == 42
    machine.stand_in("gcloud", "echo 'no account' >&2; exit 1")
    done = machine.run("/bin/bash", LAUNCH / "tpu_vm.sh", "slice", "us-east1-d", "wait")
    assert done.returncode == 42
    assert done.stderr.splitlines()[0] == "no account"


def test_the_checkout_is_copied_and_installed(machine):
    """The archive that is copied has what the installation reads, and secrets go by a file into a closed folder."""
    machine.stand_in("gcloud", f'case "$*" in *" scp "*) cat "$5" > {machine.folder}/copied;; esac')
    code, calls = machine.script("tpu_vm.sh", "slice", "us-east1-d", "install", "tpu")
    assert code == 0
    first, copy, last = calls
    assert first == ssh("mkdir -p deberta_jax/source && chmod 700 deberta_jax")
    assert copy == [*TPU, "tpu-vm", "scp", copy[5], "slice:deberta_jax/source.tar.gz", *AT[1:], *ALL]
    assert last[-1].endswith("deberta_jax/source/train/launch/install.sh deberta_jax/env tpu")
    with tarfile.open(machine.folder / "copied") as archive:
        names = set(archive.getnames())
    assert {"pyproject.toml", "locks/python3.13.txt", "configs/mnli.py", "train/launch/install.sh"} <= names
    assert not any("__pycache__" in name for name in names)
    machine.calls.unlink()
    (machine.folder / "tokens").write_text("HF_TOKEN=secret")
    code, calls = machine.script("tpu_vm.sh", "slice", "us-east1-d", "secrets", f"{machine.folder}/tokens")
    copy = [*TPU, "tpu-vm", "scp", f"{machine.folder}/tokens", "slice:deberta_jax/secrets.env", *AT[1:], *ALL]
    assert (code, calls) == (0, [ssh("mkdir -p deberta_jax && chmod 700 deberta_jax"), copy])


# A cloud in shell: not reached at first; the slice is taken away while the first run is at work; the second run ends.
CLOUD = """
cd {folder}
case "$*" in
  *describe*)
    echo ask >> asked
    if [ $(grep -c ask asked) = 1 ]; then echo "no network" >&2; exit 1; fi
    if [ ! -e slice ]; then echo "NOT_FOUND: no such slice" >&2; exit 1; fi
    cat slice ;;
  *" create "*) echo ACTIVE > slice ;;
  *" delete "*) rm slice started ;;
  *detach.sh\\ start*) echo run >> runs; touch started ;;
  *detach.sh\\ status*)
    if [ ! -e started ]; then echo not started
    elif [ $(grep -c run runs) = 1 ]; then echo SUSPENDED > slice; echo running
    else echo "ended {code}"; fi ;;
esac
"""


@pytest.mark.parametrize("code", [0, 2])
def test_a_slice_that_is_taken_away_is_asked_for_again(machine, code):
    machine.stand_in("gcloud", CLOUD.format(folder=machine.folder, code=code))
    more = {"POLL_SECONDS": "0", "TPU_OPTIONS": "--spot --internal-ips"}
    ended, calls = machine.script("tpu_vm.sh", "slice", "us-east1-d", "keep", "v5p-8", "finetune", **more)
    assert ended == code
    kinds = [call[4] for call in calls if call[3] == "queued-resources" and call[4] != "describe"]
    assert kinds == ["create", "delete", "create"]
    assert all(call[-2:] == ["--spot", "--internal-ips"] for call in calls if call[4] == "create")
    assert (machine.folder / "runs").read_text().split() == ["run", "run"]


CODES = [(0, False), (143, True), (42, True), (137, True), (2, False), (1, False)]
RUN = ["deberta-jax", "finetune", "--text", "a b", "--distributed"]


@pytest.mark.parametrize(("code", "requeued"), CODES)
def test_a_job_whose_time_is_up_asks_to_be_queued_again(machine, code, requeued):
    machine.stand_in("srun", f"exit {code}")
    machine.stand_in("scontrol")
    ended, calls = machine.script("slurm.sh", "finetune", "--text", "a b", SLURM_JOB_ID="77")
    assert ended == code
    assert calls == [["srun", "--kill-on-bad-exit=1", *RUN], *([["scontrol", "requeue", "77"]] if requeued else [])]


IN_CONTAINERS = {
    "IMAGE": ["--container-image=place#image", "--container-mounts=/shared:/shared", *RUN],
    "SIF": ["apptainer", "exec", "--nv", "--bind", "/shared:/shared", "place#image", *RUN],
}


@pytest.mark.parametrize("kind", IN_CONTAINERS)
def test_slurm_with_containers(machine, kind):
    machine.stand_in("srun")
    more = {kind: "place#image", "MOUNTS": "/shared:/shared", "SLURM_JOB_ID": "77"}
    code, (call,) = machine.script("slurm.sh", "finetune", "--text", "a b", **more)
    assert (code, call[2:]) == (0, IN_CONTAINERS[kind])
    machine.calls.unlink()
    assert machine.script("slurm.sh", "finetune", IMAGE="a", SIF="b") == (2, [])


def documented() -> list[str]:
    """The lines of the page that call the scripts or one of the programs which are stood in for, and their settings."""
    text = "\n".join(block.text for block in blocks("docs/tutorials/pods.md") if block.language == "bash")
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [line for line in lines if re.search(r"train/launch|^(export|kubectl|docker|gcloud|xpk|sbatch) ", line)]


def test_the_documented_commands_run_and_call_no_other_programs(machine):
    for name in ("gcloud", "xpk", "kubectl", "docker", "srun", "scontrol"):
        machine.stand_in(name, "echo ACTIVE" if name == "gcloud" else "")
    (machine.folder / "tokens.env").write_text("HF_TOKEN=secret")
    # SLURM runs the script that it is given; its own options stand before it.
    machine.stand_in("sbatch", 'while [ "${1#*.sh}" = "$1" ]; do shift; done; bash "$@"')
    commands = "\n".join(documented()).replace("tokens.env", f"{machine.folder}/tokens.env")
    done = machine.run("/bin/bash", "-euxc", commands, SLURM_JOB_ID="77")
    assert done.returncode == 0, done.stderr
    assert "not found" not in done.stderr
    calls = machine.called()
    kinds = {" ".join(call[: {"gcloud": 5, "xpk": 3}.get(call[0], 2)]) for call in calls}
    assert kinds == {
        "docker build",
        "docker push",
        "docker run",
        "xpk workload create",
        "kubectl apply",
        "kubectl create",
        "sbatch --nodes",
        "srun --kill-on-bad-exit=1",
        *(f"gcloud compute tpus queued-resources {verb}" for verb in ("create", "describe", "delete")),
        *(f"gcloud compute tpus tpu-vm {verb}" for verb in ("ssh", "scp")),
    }
    assert not any("HF_TOKEN" in word for call in calls for word in call), "a secret on a command line"
    files = [word for call in calls if call[:3] == ["kubectl", "apply", "-f"] for word in call[3:]]
    assert sorted(files) == ["train/launch/jobset.yaml", "train/launch/jobset_gpu.yaml"]


def manifests(name: str) -> dict[str, dict]:
    return {entry["kind"]: entry for entry in yaml.safe_load_all((LAUNCH / name).read_text())}


@pytest.mark.parametrize(("name", "pods"), [("jobset.yaml", 4), ("jobset_gpu.yaml", 2)])
def test_a_jobset_is_one_job_of_all_hosts_on_volumes_that_outlive_it(name, pods):
    jobset = manifests(name)["JobSet"]
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] == pods
    (container,) = pod["containers"]
    assert container["args"][:2] == ["finetune", "--distributed"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    claims = {volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}
    assert {"data", "output", "cache"} == claims
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
    output = next(word.removeprefix("--output=") for word in container["args"] if word.startswith("--output="))
    assert output.startswith(mounts["output"])
    assert {"name": "XDG_CACHE_HOME", "value": mounts["cache"]} in container["env"]
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert pod["securityContext"]["fsGroup"] == 10001, "the image's user may write to the volumes"
    assert not any("TOKEN" in variable["name"] for variable in container["env"])


@pytest.mark.parametrize("name", ["jobset.yaml", "jobset_gpu.yaml"])
def test_a_jobset_gives_up_where_the_user_must_act_and_restarts_else(name):
    jobset = manifests(name)["JobSet"]
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    (container,) = job["template"]["spec"]["containers"]
    on = rule["onExitCodes"]
    assert rule["action"] == "FailJob"
    assert (on["containerName"], on["operator"], on["values"]) == (container["name"], "In", [2])
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["backoffLimit"] == 0
    assert jobset["spec"]["failurePolicy"]["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_a_slice_has_its_node_pool_alone_and_gpus_may_ask_for_their_pods():
    (topology,) = manifests("jobset.yaml")["JobSet"]["metadata"]["annotations"].items()
    assert topology == ("alpha.jobset.sigs.k8s.io/exclusive-topology", "cloud.google.com/gke-nodepool")
    found = manifests("jobset_gpu.yaml")
    allowed = {(r, verb) for rule in found["Role"]["rules"] for r in rule["resources"] for verb in rule["verbs"]}
    # What JAX's cluster for Kubernetes calls: list_namespaced_pod, list_namespaced_service, read_namespaced_job.
    assert {("pods", "list"), ("services", "list"), ("jobs", "get")} <= allowed
    name = found["ServiceAccount"]["metadata"]["name"]
    assert found["RoleBinding"]["subjects"] == [{"kind": "ServiceAccount", "name": name}]
    assert found["RoleBinding"]["roleRef"]["name"] == found["Role"]["metadata"]["name"]
    job = found["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["template"]["spec"]["serviceAccountName"] == name
    assert job["completionMode"] == "Indexed"


def test_the_image_is_locked_runs_as_a_user_and_has_no_secrets():
    lines = [line for line in (LAUNCH / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    steps = [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]
    found = dict(steps)
    version = re.match(r"python:(3\.(\d+))-", found["FROM"])
    assert version is not None
    assert int(version[2]) >= 12
    assert (ROOT / "locks" / f"python{version[1]}.txt").is_file()
    defaults = dict(rest.split("=") for step, rest in steps if step == "ARG")
    assert found["USER"] == "$RUN_AS"
    assert int(defaults["RUN_AS"]) > 0
    copied = {word for step, rest in steps if step == "COPY" for word in rest.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    assert {"configs", "locks", "deberta_jax", "train/launch/install.sh"} <= copied
    assert not re.search(r"TOKEN|KEY|PASSWORD|SECRET", " ".join(rest for step, rest in steps if step in ("ARG", "ENV")))
    assert found["ENTRYPOINT"] == '["deberta-jax"]'
    assert {"tpu", "gcs", "serve"} <= set(defaults["EXTRAS"].split(","))


@pytest.mark.long
@pytest.mark.system
def test_the_steps_of_the_image_end_in_a_preflight_that_passes():
    """In an empty folder and environment, from the package registry."""
    script = [sys.executable, ROOT / "scripts" / "try_image.py", "--extras", "gcs,serve"]
    done = subprocess.run(script, check=False, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "preflight that passes" in done.stdout.splitlines()[-1]
