"""A run whose model, data and output are in a bucket: processes without a common disk, killed, and gone on with.

The clients are gcsfs and tensorstore themselves; they talk to a bucket in this process.
"""

import hashlib
import json
import signal
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from deberta_jax.cli.main import main
from tests.made import LABELS, binary_files, start, stdout_of, weighted_model, without_dropout
from tests.training.processes import curve, finish, port, wait
from tests.weights import bucket

pytest.importorskip("gcsfs")
pytestmark = [pytest.mark.long, pytest.mark.system]  # four minutes of two cores

ROOT = str(Path(__file__).parents[2])
RUN = "bucket/out/run"
OPTIONS = [
    "--text",
    "sentence",
    "--label",
    "kind",
    "--max-length",
    "16",
    "--batch-size",
    "16",
    "--learning-rate",
    "3e-3",
]
OPTIONS += ["--epochs", "2", "--log-every", "1", "--checkpoint-every", "3", "--batching", "buckets"]  # 12 steps
IN_BUCKET = ["--model", "gs://bucket/in/model", "--train", "gs://bucket/in/data.zip/train.csv"]
IN_BUCKET += ["--eval", "gs://bucket/in/eval.csv", "--output", f"gs://{RUN}"]


class Reader:
    """Looks at the bucket again and again: what a reader takes for complete must be so.

    A state is taken for one if it has its mark, a model directory if it has config.json.
    """

    def __init__(self, served: bucket.Bucket):
        self.served, self.wrong, self.states, self.models = served, [], {}, set()

    def look(self) -> None:
        objects = self.served.copy()
        of_run = {n.removeprefix(f"{RUN}/"): v for n, v in objects.items() if n.startswith(f"{RUN}/")}
        model = tuple(of_run[name][1] for name in of_run if "/" not in name)  # the generations of its files
        if "config.json" in of_run and model not in self.models:
            self.models.add(model)
            listed = json.loads(of_run["checksums.json"][0])["files"] if "checksums.json" in of_run else {"none": {}}
            self.wrong += [f"model: {name}" for name, entry in listed.items() if not intact(of_run.get(name), entry)]
        for mark in [name for name in of_run if name.startswith("state/") and name.count("/") == 2]:
            if mark.endswith("/commit_success.txt"):
                below = {n for n in of_run if n.startswith(mark.removesuffix("commit_success.txt"))}
                missing = {
                    f"{Path(mark).parent}/{name}" for name in ("record/metadata", "state/manifest.ocdbt")
                } - below
                missing |= self.states.setdefault(mark, below) - below
                self.wrong += sorted(missing)


def intact(found: tuple[bytes, int] | None, entry: dict) -> bool:
    if found is None or len(found[0]) != entry["size"]:
        return False
    blocks = [found[0][i : i + entry["block"]] for i in range(0, entry["size"], entry["block"])]
    return [hashlib.sha256(block).hexdigest() for block in blocks] == entry["sha256"]


@contextmanager
def read_all_the_time(reader: Reader) -> Iterator[None]:
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            reader.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("task")
    binary_files(directory)
    weighted_model(directory / "model", without_dropout())
    return directory


@pytest.fixture
def served(home):
    with bucket.running() as found:
        with zipfile.ZipFile(home / "data.zip", "w") as archive:
            archive.write(home / "train.csv", "train.csv")
        for file in (home / "data.zip", home / "eval.csv", *(home / "model").iterdir()):
            found.put(f"bucket/in/{file.relative_to(home).as_posix()}", file.read_bytes())
        yield found


def begin(served, tmp_path, cache, name: str, *more: str, processes: int = 1):
    """Each process has a home and a working directory of its own."""
    joined = ["--coordinator", f"localhost:{port()}", "--processes", str(processes), "--heartbeat", "10"]
    found = []
    for i in range(processes):
        own = tmp_path / f"{name}-{i}"
        own.mkdir()
        numbered = [*joined, "--mesh-data", str(processes), "--process", str(i)] if processes > 1 else []
        places = {"HOME": str(own), "XDG_CACHE_HOME": str(own / "cache"), "PYTHONPATH": ROOT}
        found.append(
            start(
                ["finetune", *IN_BUCKET, *OPTIONS, *more, *numbered],
                cwd=own,
                **places,
                **cache,
                **bucket.environment(served),
            )
        )
    return found


def states(served) -> list[int]:
    names = [name.split("/") for name in served.names() if name.startswith(f"{RUN}/state/")]
    return sorted(int(parts[4]) for parts in names if parts[5:] == ["commit_success.txt"])


def test_a_run_in_a_bucket_is_killed_and_goes_on_anywhere(home, served, cache, tmp_path, monkeypatch):
    reader = Reader(served)
    local = ["finetune", "--model", str(home / "model"), "--train", str(home / "train.csv")]
    local += ["--eval", str(home / "eval.csv"), "--output", str(tmp_path / "local"), *OPTIONS]
    with read_all_the_time(reader):
        pair = begin(served, tmp_path, cache, "pair", processes=2)
        wait(lambda: states(served), pair)
        pair[1].kill()
        told = [process.communicate(timeout=300)[1] for process in pair]
        assert pair[0].returncode in (42, -signal.SIGABRT), told
        stopped_at = states(served)[-1]

        (alone,) = begin(served, tmp_path, cache, "alone")
        wait(lambda: states(served)[-1] > stopped_at, [alone])
        alone.kill()
        assert "going on from step" in alone.communicate(timeout=60)[1]
        assert states(served)[-1] < 12

        finish(begin(served, tmp_path, cache, "again", processes=2))
    assert reader.wrong == []
    assert len(reader.states) >= 3
    assert reader.models
    assert states(served) == [12]

    finish([start(local, **cache)])
    log = tmp_path / "log.jsonl"
    log.write_bytes(served.objects[f"{RUN}/log.jsonl"][0])
    np.testing.assert_allclose(curve(tmp_path), curve(tmp_path / "local"), rtol=1e-5)
    sessions = [json.loads(line) for line in served.objects[f"{RUN}/sessions.jsonl"][0].splitlines()]
    assert [session["processes"] for session in sessions] == [2, 1, 2]
    assert not list(tmp_path.rglob("gs:*")), "no local directory of that name"

    for name, value in bucket.environment(served).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.chdir(tmp_path)
    bucket.forget_file_systems()
    data = ["--data", "gs://bucket/in/eval.csv"]
    there, here = (
        json.loads(stdout_of(["evaluate", "--model", model, *data]))
        for model in (f"gs://{RUN}", str(tmp_path / "local"))
    )
    assert there == pytest.approx(here, rel=1e-4)
    answers = "gs://bucket/out/answers.jsonl"
    main(["predict", "--model", f"gs://{RUN}", "--input", "gs://bucket/in/eval.csv", "--output", answers])
    lines = served.objects["bucket/out/answers.jsonl"][0].splitlines()
    assert len(lines) == 40
    assert {json.loads(line)["label"] for line in lines} <= set(LABELS)
    main(["convert", f"gs://{RUN}", "gs://bucket/out/converted", "--to", "hf"])
    weights = [served.objects[f"{name}/model.safetensors"][0] for name in (RUN, "bucket/out/converted")]
    assert weights[0] == weights[1]
