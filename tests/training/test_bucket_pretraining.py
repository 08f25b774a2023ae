"""Text, model and output of a pre-training in a bucket: prepared, trained, and gone on with by another process."""

import json
from pathlib import Path

import pytest

from tests.made import pretraining_home, start
from tests.training.processes import finish
from tests.weights import bucket

pytest.importorskip("gcsfs")
pytestmark = [pytest.mark.system, pytest.mark.slow]

ROOT, OUTPUT = str(Path(__file__).parents[2]), "bucket/out/run"
OPTIONS = ["--from-scratch", "--batch-size", "16", "--max-length", "32", "--log-every", "1", "--eval-every", "4"]


@pytest.mark.parametrize("kind", ["mlm", pytest.param("rtd", marks=pytest.mark.long)])
def test_a_pretraining_needs_no_disk(kind, cache, tmp_path):
    home = pretraining_home(tmp_path / "home", 200)
    with bucket.running() as served:
        for file in (home / "train.txt", home / "eval.txt", *(home / "blank").iterdir()):
            served.put(f"bucket/in/{file.relative_to(home).as_posix()}", file.read_bytes())

        def run(name: str, *words: str) -> str:
            own = tmp_path / name
            own.mkdir()
            places = {"HOME": str(own), "XDG_CACHE_HOME": str(own / "cache"), "PYTHONPATH": ROOT}
            process = start(list(words), cwd=own, **places, **cache, **bucket.environment(served))
            (told,) = finish([process])
            assert not list(tmp_path.rglob("gs:*")), "no local directory of that name"
            return told

        source = ["--tokenizer", "gs://bucket/in/blank", "--input", "gs://bucket/in/train.txt"]
        run("prepared", "prepare", *source, "--output", "shards")
        pretrain = ["pretrain", kind, "--model", "gs://bucket/in/blank", *OPTIONS, "--output", f"gs://{OUTPUT}"]
        pretrain += ["--steps", "8", "--eval", "gs://bucket/in/eval.txt"]
        run("trained", *pretrain, "--train", "gs://bucket/in/train.txt")
        names = {name.removeprefix(f"{OUTPUT}/") for name in served.names()}
        models = [""] if kind == "mlm" else ["generator/", "discriminator/"]
        assert names >= {f"{model}{file}" for model in models for file in ("config.json", "model.safetensors")}
        assert names >= {"experiment.json", "log.jsonl", "result.json", "state/8/commit_success.txt"}
        entries = [json.loads(line) for line in served.objects[f"{OUTPUT}/log.jsonl"][0].splitlines()]
        assert [entry["step"] for entry in entries if "loss" in entry] == list(range(1, 9))
        before = served.objects[f"{OUTPUT}/result.json"]
        run("again", *pretrain, "--train", "gs://bucket/in/train.txt")
        assert served.objects[f"{OUTPUT}/result.json"] == before
