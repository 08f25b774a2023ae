"""Records runs, models and caches as an older commit of this package wrote them, and what it computed from them.

Run once by that commit's own code, from any directory, on one CPU device:

    git worktree add ../older 3afa4f1
    PYTHONPATH=../older JAX_PLATFORMS=cpu python tests/golden/older/make_older.py

It writes ``artefacts.tar.xz`` and ``expected.json`` beside itself. Every path in the artefacts is relative to the
directory that the archive is unpacked to.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import random
import shutil
import signal
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import deberta_jax
from deberta_jax import DebertaConfig, DebertaForSequenceClassification, init_params, save_pretrained, train_tokenizer
from deberta_jax.cli.main import main
from deberta_jax.training import finetune
from deberta_jax.training.logging import RunLog

HERE = Path(__file__).resolve().parent
COMMIT = "3afa4f1"
POSITIVE = ["ban", "bast", "korn", "mull", "rist"]
NEGATIVE = ["tell", "sark", "loth", "nist", "teb"]
SIZES = ["--max-length", "16", "--batch-size", "16", "--learning-rate", "3e-3", "--checkpoint-every", "3"]
TABLES = ["--train", "train.csv", "--eval", "eval.csv", "--text", "sentence", "--label", "kind"]
COMMANDS: dict[str, list[str]] = {
    # With dropout, a moving average of the parameters, and an implementation of attention by a name of that time.
    "classification": [
        "finetune",
        *("--model", "blank", "--from-scratch", *TABLES, *SIZES),
        *("--epochs", "2", "--log-every", "4", "--ema", "0.9", "--attention", "shift"),
    ],
    "lora": [
        "finetune",
        *("--model", "base", *TABLES, *SIZES),
        *("--epochs", "1", "--log-every", "4", "--lora", "2", "--batching", "buckets"),
    ],
    "tokens": [
        "finetune",
        *("--task", "token-classification", "--model", "blank", "--from-scratch", "--train", "train.conll"),
        *("--eval", "eval.conll", *SIZES, "--epochs", "1", "--log-every", "4"),
    ],
    "rtd": [
        "pretrain",
        *("rtd", "--model", "blank", "--from-scratch", "--train", "prepared", "--eval", "held_out.txt", *SIZES),
        *("--steps", "8", "--eval-every", "4", "--log-every", "3"),
    ],
}
PREPARE = ["prepare", "--tokenizer", "blank", "--input", "text.txt", "--output", "prepared", "--workers", "1"]
# Of each run that is interrupted: the step after which it stops, between two lines of its log and two evaluations.
STOPS = {"classification": 7, "lora": 3, "rtd": 5}


def write_inputs() -> None:
    """Writes the data files, a model without weights and one with weights to the working directory."""
    rng = random.Random(0)
    rows = []
    for i in range(136):
        words = NEGATIVE if i % 2 else POSITIVE
        rows.append((" ".join(rng.choice(words) for _ in range(rng.randint(4, 7))), "neg" if i % 2 else "pos"))
    for name, part in (("train", rows[:96]), ("eval", rows[96:])):
        Path(f"{name}.csv").write_text("sentence,kind\n" + "".join(f"{text},{label}\n" for text, label in part))
        tag = lambda word: "B-POS" if word in POSITIVE else "O"
        sentences = ("".join(f"{word} {tag(word)}\n" for word in text.split()) for text, _ in part)
        Path(f"{name}.conll").write_text("\n".join(sentences))
    texts = [text for text, _ in rows]
    Path("text.txt").write_text("\n".join(texts[:96]) + "\n")
    Path("held_out.txt").write_text("\n".join(texts[96:]) + "\n")
    tokenizer = train_tokenizer(texts, 364, "blank")
    config = DebertaConfig(
        vocab_size=368,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        relative_attention=True,
        pos_att_type=("p2c", "c2p"),
        position_biased_input=False,
        position_buckets=8,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        legacy=False,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    Path("blank/config.json").write_text(json.dumps(config.to_hf()))
    model = DebertaForSequenceClassification(dataclasses.replace(config, id2label=("neg", "pos")))
    save_pretrained("base", model, jax.jit(lambda: init_params(model, jax.random.key(3)))(), tokenizer)


def stdout_of(arguments: list[str]) -> str:
    """Runs a command; returns what it prints on standard output."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main(arguments)
    return out.getvalue()


def stop_run(arguments: list[str], step: int) -> None:
    """Runs a command that receives SIGTERM during this step."""
    step_of_log = RunLog.step

    def signal_at(self: RunLog, at: int, *rest: Any) -> None:
        step_of_log(self, at, *rest)
        if at == step:
            signal.raise_signal(signal.SIGTERM)

    RunLog.step = signal_at
    with contextlib.suppress(SystemExit):
        main(arguments)
    RunLog.step = step_of_log


def record_run(name: str) -> dict[str, Any]:
    """Makes ``finished/NAME`` and, of an interrupted run, ``stopped/NAME`` before it; returns what the run computed."""
    finished, stopped = f"finished/{name}", f"stopped/{name}"
    if name in STOPS:
        stop_run([*COMMANDS[name], "--output", stopped], STOPS[name])
        assert [path.name for path in Path(stopped, "state").iterdir()] == [str(STOPS[name])]
        shutil.copytree(stopped, finished)
    printed = json.loads(stdout_of([*COMMANDS[name], "--output", finished]))
    del printed["output"]
    entries = [json.loads(line) for line in Path(finished, "log.jsonl").read_text().splitlines()]
    times = ("tokens_per_second", "examples_per_second")
    log = [{key: value for key, value in entry.items() if key not in times} for entry in entries]
    # A finished run is used by its model directories alone; its pictures would be most of the archive.
    shutil.rmtree(Path(finished, "state"))
    for folder in (finished, stopped):
        Path(folder, "curves.png").unlink(missing_ok=True)
    return {"command": COMMANDS[name], "stopped_at": STOPS.get(name), "printed": printed, "log": log}


def predict(model: str, data: str) -> list[Any]:
    lines = stdout_of(["predict", "--model", model, "--input", data, "--output", "-"]).splitlines()
    return [json.loads(line) for line in lines]


def parameters_of(model: str, head: Any) -> dict[str, float]:
    """The sum of the squares of every parameter, by path."""
    _, params = deberta_jax.from_pretrained(model, head=head)
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(k.key for k in path): float(np.sum(np.float64(leaf) ** 2)) for path, leaf in leaves}


def record_identities(found: dict[str, Any]) -> None:
    """From now on adds the identity of each cached table of tokens to ``found``, by the name of its directory."""
    cached_features = finetune.cached_features

    def recording(identity: Any, *rest: Any) -> Any:
        found[hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()] = identity
        return cached_features(identity, *rest)

    finetune.cached_features = recording


def record() -> dict[str, Any]:
    """Makes everything in the working directory; returns what the tests compare with."""
    write_inputs()
    identities: dict[str, Any] = {}
    record_identities(identities)
    os.environ["XDG_CACHE_HOME"] = str(Path("cache").absolute())
    prepared = stdout_of(PREPARE)
    runs = {name: record_run(name) for name in COMMANDS}
    main(["convert", "finished/classification", "orbax", "--to", "orbax"])
    answers = {
        "finished/classification": predict("finished/classification", "eval.csv"),
        "finished/tokens": predict("finished/tokens", "eval.conll"),
        "finished/lora/adapter": predict("finished/lora/adapter", "eval.csv"),
    }
    parameters = {
        "stopped/classification/state": parameters_of("stopped/classification/state", "sequence-classification"),
        "finished/rtd/generator": parameters_of("finished/rtd/generator", "masked-lm"),
        "finished/rtd/discriminator": parameters_of("finished/rtd/discriminator", "replaced-token-detection"),
    }
    return {
        "commit": COMMIT,
        "jax": jax.__version__,
        "runs": runs,
        "prepare": {"command": PREPARE, "printed": prepared},
        "tokens": identities,
        "answers": answers,
        "parameters": parameters,
    }


def without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def run() -> None:
    with tempfile.TemporaryDirectory() as home, contextlib.chdir(home):
        expected = record()
        with tarfile.open(HERE / "artefacts.tar.xz", "w:xz") as archive:
            for path in sorted(Path().iterdir()):
                archive.add(path, filter=without_owner)
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    run()
