"""Small made tasks: texts of made-up words whose labels can be read off the words, a vocabulary, a tiny model.

Everything follows from fixed seeds, so that a run made twice is the same run.
"""

import contextlib
import csv
import dataclasses
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from deberta_jax import DebertaConfig, DebertaForSequenceClassification, init_params, save_pretrained, train_tokenizer
from deberta_jax.cli.main import main
from deberta_jax.models import Model
from deberta_jax.text import Tokenizer
from deberta_jax.training.experiment import Finetune
from deberta_jax.training.logging import TIMES

# A shell's background jobs begin with SIGINT ignored, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests leave nothing in the user's cache and find nothing there.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="deberta_jax-tests-")

# Warnings of the processes that tests start: what a next release will remove fails here first.
NOTHING_DEPRECATED = "error::DeprecationWarning,error::FutureWarning"

MAX_LENGTH = 16
_STEMS = {"pos": "ba ko ri mu", "neg": "te sa lo ni", "other": "ge du pi fo"}
WORDS = {label: [a + b for a in stems.split() for b in ("n", "st", "ll", "rk")] for label, stems in _STEMS.items()}
LABELS = tuple(WORDS)

TINY = DebertaConfig(
    vocab_size=408,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
    relative_attention=True,
    pos_att_type=("p2c", "c2p"),
    position_biased_input=False,
    position_buckets=8,
    share_att_key=True,
    norm_rel_ebd="layer_norm",
    legacy=False,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def text_of(label: str, rng: np.random.Generator, shortest: int = 6, longest: int = 7) -> str:
    """Words of the label's list, of any list now and then."""
    lists = (
        label if rng.random() < 0.9 else str(rng.choice(LABELS)) for _ in range(rng.integers(shortest, longest + 1))
    )
    return " ".join(str(rng.choice(WORDS[name])) for name in lists)


def rows(count: int, classes: int = 2, seed: int = 0) -> list[tuple[str, str]]:
    """``count`` pairs of text and label, the labels in turn."""
    rng = np.random.default_rng(seed)
    return [(text_of(LABELS[i % classes], rng), LABELS[i % classes]) for i in range(count)]


def write_table(path: Path, header: tuple[str, ...], body: list[tuple[Any, ...]]) -> Path:
    """A csv, tsv or jsonl file, by the ending."""
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in body)
        else:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *body])
    return path


_TOKENIZER_LINES = [text for text, _ in rows(300, classes=3, seed=9)]


def make_tokenizer(directory: Path) -> Tokenizer:
    return train_tokenizer(_TOKENIZER_LINES, 390, directory)


def blank_model(directory: Path, config: DebertaConfig = TINY) -> Path:
    """config.json and a tokenizer, no weights."""
    make_tokenizer(directory)
    (directory / "config.json").write_text(json.dumps(config.to_hf()))
    return directory


def weighted_model(directory: Path, config: DebertaConfig = TINY) -> Path:
    """A model directory with fresh weights and a classifier of ``config.num_labels``."""
    tokenizer = make_tokenizer(directory.with_name(directory.name + "-tokenizer"))
    return saved_model(directory, DebertaForSequenceClassification(config), tokenizer, seed=3)


def saved_model(directory: Path, model: Model, tokenizer: Tokenizer | None = None, seed: int = 0) -> Path:
    """A model directory with fresh weights of this model."""
    save_pretrained(directory, model, jax.jit(lambda: init_params(model, jax.random.key(seed)))(), tokenizer)
    return directory


def pretraining_home(directory: Path, lines: int) -> Path:
    """A blank model, and text to train on (train.txt, so many lines) and held out (eval.txt, 100)."""
    blank_model(directory / "blank")
    texts = [text for text, _ in rows(lines + 100, classes=3, seed=5)]
    (directory / "train.txt").write_text("\n".join(texts[:lines]))
    (directory / "eval.txt").write_text("\n".join(texts[lines:]))
    return directory


def binary_files(directory: Path) -> dict[str, str]:
    """train.csv (96 rows) and eval.csv (40), of one padded length; columns ``sentence`` and ``kind``."""
    header = ("sentence", "kind")
    return {
        "train": str(write_table(directory / "train.csv", header, rows(96, seed=1))),
        "eval": str(write_table(directory / "eval.csv", header, rows(40, seed=2))),
    }


def without_dropout(config: DebertaConfig = TINY) -> DebertaConfig:
    return dataclasses.replace(config, cls_dropout=0.0)


@dataclasses.dataclass(frozen=True)
class Task:
    """A blank model and the files of the binary task, in ``home``."""

    home: Path

    @property
    def blank(self) -> Path:
        return self.home / "blank"

    def experiment(self, output: Path, **settings: Any) -> Finetune:
        """A run from the blank model, with the defaults of ``Finetune`` for what is not given."""
        files = {"train": str(self.home / "train.csv"), "eval": str(self.home / "eval.csv")}
        columns = {"text": ("sentence",), "label": "kind"}
        blank = {"model": str(self.blank), "from_scratch": True}
        return Finetune(**{**blank, **files, **columns, "output": str(output), **settings})

    def arguments(self, output: Path, *more: str) -> list[str]:
        """Of a run that learns the task; later ones win."""
        return [
            "finetune",
            "--model",
            str(self.blank),
            "--from-scratch",
            "--train",
            str(self.home / "train.csv"),
            "--eval",
            str(self.home / "eval.csv"),
            "--text",
            "sentence",
            "--label",
            "kind",
            "--output",
            str(output),
            "--max-length",
            str(MAX_LENGTH),
            "--epochs",
            "4",
            "--batch-size",
            "16",
            "--learning-rate",
            "3e-3",
            "--log-every",
            "4",
            *more,
        ]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run of the task: its directory and the object it printed."""

    task: Task
    directory: Path
    printed: dict[str, Any]


@contextlib.contextmanager
def alone(home: Path) -> Iterator[None]:
    """One process of the session at a time."""
    with (home / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def stdout_of(arguments: Sequence[str]) -> str:
    """What a command prints on standard output, run in this process."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main(arguments)
    return out.getvalue()


def refused(arguments: Sequence[Any], capsys: Any) -> str:
    """The one line on standard error of a command that fails with code 2; nothing on standard output."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert err.splitlines()[-1] == lines[0], "the last word"
    assert "Traceback" not in err
    return lines[0]


def start(
    arguments: Sequence[str], *, devices: int = 1, cwd: Path | None = None, **environment: str
) -> subprocess.Popen[str]:
    """The command in a process of its own, on this many simulated devices, compiled as the tests' own programs are."""
    env = {
        **os.environ,
        # Of a flag given twice the last one holds.
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": NOTHING_DEPRECATED,
        **environment,
    }
    command = [sys.executable, "-m", "deberta_jax.cli.main", *arguments]
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=env, cwd=cwd, text=True, **pipes)


def log_of(directory: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl without what is never the same twice."""
    lines = (directory / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
