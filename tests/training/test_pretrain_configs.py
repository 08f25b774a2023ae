"""Every command that the docstring of a pre-training configuration gives is taken, on small data and a small model."""

import functools
import importlib.util
import json
import shlex
from pathlib import Path

import pytest

from deberta_jax import DebertaForMaskedLM, DebertaForReplacedTokenDetection
from deberta_jax.cli import pretrain
from deberta_jax.text import load_tokenizer
from deberta_jax.training.dry_run import describe_job
from tests.made import TINY, blank_model, rows, saved_model, stdout_of

ROOT = Path(__file__).resolve().parents[2]


def commands(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines = [line.strip() for line in (module.__doc__ or "").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("deberta-jax ")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("pretrain_mlm", 2), ("pretrain_rtd", 3), ("pretrain_laptop", 1)])
def test_the_commands_of_a_docstring(name, count, tmp_path, monkeypatch):
    blank_model(tmp_path / "model")
    (tmp_path / "text").mkdir()
    for file in ("text/a.txt", "b.txt"):
        (tmp_path / file).write_text("\n".join(text for text, _ in rows(100, classes=3)))
    if name == "pretrain_rtd":  # one of its commands goes on from weights
        for kind, saved in ((DebertaForMaskedLM, "generator"), (DebertaForReplacedTokenDetection, "discriminator")):
            saved_model(tmp_path / saved, kind(TINY), load_tokenizer(tmp_path / "model"))
    told = {
        "TOK": "model",
        "TOKENS": "tokens",
        "text/*.txt": "text/*.txt",
        "F": "b.txt",
        "RUN": "run",
        "DIR": "model",
        "A.txt": "text/a.txt",
        "B.txt": "b.txt",
        "microsoft/deberta-v3-small": "discriminator",
        "microsoft/deberta-v3-small/pytorch_model.generator.bin": "generator/model.safetensors",
    }
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(pretrain, "describe_job", functools.partial(describe_job, compiled=False))
    # Shorter rows, and the released architectures' place is taken by a small one; all else is as it stands there.
    small = ["--max-length", "32", "--batch-size", "8", "--eval-every", "1", "--dry-run"]
    found = commands(name)
    if name != "pretrain_laptop":  # which expects a prepared directory
        assert found[0][0] == "prepare"
    for command in found:
        words = [str(tmp_path / told[word]) if word in told else word for word in command]
        if command[0] == "prepare":
            assert "tokens in 1 shards" in stdout_of(words)
            continue
        model = [] if "--model" in words else ["--model", str(tmp_path / "model")]
        assert json.loads(stdout_of([*words, *model, *small]))["programs"] == [[8, 32]]
    assert len(found) == count
