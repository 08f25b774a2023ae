"""Demonstrates the package in five minutes, on English text that comes with every Python.

A vocabulary and a masked language model are trained on the standard library's docstrings and ``pydoc``'s topics. Then
the model learns from which package a docstring is, with and without that pre-training.
"""

import ast
import csv
import dataclasses
import io
import json
import logging
import sysconfig
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from deberta_jax import storage
from deberta_jax.config import DebertaConfig
from deberta_jax.data.corpus import read_documents
from deberta_jax.data.tables import read_table
from deberta_jax.errors import InputError
from deberta_jax.inference.pipelines import pipeline
from deberta_jax.text import train_tokenizer
from deberta_jax.training.directory import Result
from deberta_jax.training.experiment import Finetune, Optimization, PretrainMLM, RunOptions
from deberta_jax.training.finetuning import finetune
from deberta_jax.training.pretraining import pretrain

_log = logging.getLogger(__name__)

VOCABULARY = 4000
CLASSES = 8
PER_CLASS = 200
HELD_OUT = 0.75  # pre-training helps most with few labels; and a large held-out part measures precisely
MAX_LENGTH = 64
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib-dynload"}


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """Holds what the demonstration measured: losses in nats a masked token, accuracies on held-out docstrings."""

    classes: int
    train_items: int
    held_out_items: int
    parameters: int
    pretraining_loss_before: float
    pretraining_loss_after: float
    accuracy: float
    accuracy_without_pretraining: float
    majority_accuracy: float
    seconds: float


def run_demo(output: Path, *, pretraining_steps: int = 700, epochs: int = 12) -> DemoResult:
    """Starts the demonstration in ``output``, or continues it. Prints nothing on standard output.

    Raises:
      InputError: the output directory holds something else.
      SystemExit: a signal stopped it, after the state was saved.
    """
    there = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if there - {storage.LOCK} and not (output / "data" / "pretrain.txt").is_file():
        raise InputError(f"--output {output}: is not empty and holds no demonstration; give another directory")
    with storage.locked_directory("--output", output):
        return _run_steps(output, pretraining_steps, epochs)


def _run_steps(output: Path, pretraining_steps: int, epochs: int) -> DemoResult:
    began = time.perf_counter()
    write_data(output / "data")
    write_blank_model(output)
    data = output / "data"
    _log.info("pre-training by masked LM, %d steps", pretraining_steps)
    pretrained = require_finished(
        pretrain(
            PretrainMLM(
                model=str(output / "blank"),
                from_scratch=True,
                train=(str(data / "pretrain.txt"),),
                eval=str(data / "pretrain_held_out.txt"),
                output=str(output / "pretrained"),
                steps=pretraining_steps,
                batch_size=32,
                max_length=MAX_LENGTH,
                eval_every=max(1, pretraining_steps // 3),
                layout="contiguous",
                mask_share=0.25,
                optimization=Optimization(learning_rate=4e-3, warmup=0.06),
                runtime=RunOptions(log_every=25, checkpoint_every=1000),
            )
        )
    )
    task = Finetune(
        train=str(data / "train.csv"),
        eval=str(data / "held_out.csv"),
        text=("docstring",),
        label="package",
        epochs=epochs,
        batch_size=32,
        max_length=MAX_LENGTH,
        optimization=Optimization(learning_rate=1e-3),
    )
    _log.info("fine-tuning: which package is a docstring from?")
    with_it = require_finished(
        finetune(dataclasses.replace(task, model=str(output / "pretrained"), output=str(output / "classifier")))
    )
    _log.info("the same without pre-training")
    without = require_finished(
        finetune(
            dataclasses.replace(
                task, model=str(output / "blank"), from_scratch=True, output=str(output / "without_pretraining")
            )
        )
    )
    log = storage.read_json_lines(output / "pretrained" / "log.jsonl")
    losses = [entry["eval"]["loss"] for entry in log if "eval" in entry]
    train, held_out = read_table(data / "train.csv"), read_table(data / "held_out.csv")
    majority = Counter(train.column("package")).most_common(1)[0][0]
    result = DemoResult(
        classes=len(set(train.column("package"))),
        train_items=len(train),
        held_out_items=len(held_out),
        parameters=parameter_count(output / "classifier"),
        pretraining_loss_before=losses[0],
        pretraining_loss_after=float(pretrained.metrics["loss"] or 0),
        accuracy=float(with_it.metrics["accuracy"] or 0),
        accuracy_without_pretraining=float(without.metrics["accuracy"] or 0),
        majority_accuracy=held_out.column("package").count(majority) / len(held_out),
        seconds=time.perf_counter() - began,
    )
    storage.write_json(output / "demo.json", dataclasses.asdict(result))
    return result


def format_report(result: DemoResult, output: Path) -> str:
    """Returns the result as a page of text, with a few predictions and the next command to try."""
    held_out = read_table(output / "data" / "held_out.csv")
    pipe = pipeline("text-classification", output / "classifier")
    picks = np.random.default_rng(1).choice(len(held_out), min(5, len(held_out)), replace=False)
    texts = [held_out.column("docstring")[i] for i in picks]
    truths = [held_out.column("package")[i] for i in picks]
    answers = pipe(texts)
    width = max(map(len, truths))
    shown = [
        f"  {'right' if a['label'] == t else 'wrong'}  {a['label']:<{width}} {a['score']:.2f}  (is {t:<{width}})  "
        f"{' '.join(text.split())[:60]}"
        for a, t, text in zip(answers, truths, texts, strict=True)
    ]
    r = result
    return "\n".join(
        [
            "",
            f"Which of {r.classes} packages is a docstring from?  {r.train_items} to learn from, {r.held_out_items} "
            f"held out, {r.parameters / 1e6:.1f}M parameters",
            "",
            f"  masked-LM loss, held out     {r.pretraining_loss_before:6.2f} before, {r.pretraining_loss_after:.2f} "
            f"after pre-training (uniform guess {np.log(VOCABULARY):.2f})",
            f"  accuracy, majority class     {r.majority_accuracy:6.3f}",
            f"  accuracy, no pre-training    {r.accuracy_without_pretraining:6.3f}",
            f"  accuracy, pre-trained        {r.accuracy:6.3f}",
            "",
            *shown,
            "",
            f"  model directory              {output / 'classifier'}",
            f"  curves                       {output / 'classifier' / 'curves.png'}",
            f"  took                         {r.seconds:.0f} s",
            "",
            "Next, on your own file:",
            f"  deberta-jax predict --model {output / 'classifier'} --input {output / 'data' / 'held_out.csv'} "
            "--text docstring --output -",
            "",
        ]
    )


def require_finished(result: Result) -> Result:
    """Returns the result of a finished run. Raises SystemExit for one that a signal stopped."""
    if result.stopped is not None:
        _log.info("stopped by %s; run the same command to go on", result.stopped.name)
        raise SystemExit(128 + result.stopped)
    return result


def parameter_count(directory: Path) -> int:
    """Returns the number of parameters in a directory's model.safetensors, from its header."""
    with storage.opened(directory / "model.safetensors") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(int(np.prod(t["shape"])) for name, t in header.items() if name != "__metadata__")


def small_config(vocabulary: int, **changes: Any) -> DebertaConfig:
    """Returns the config of a v3 model of two layers that CPUs train in minutes.

    Args:
      vocabulary: number of tokens that a tokenizer is trained for; it adds a few of its own.
      changes: other fields of the config, or other values.
    """
    fields: dict[str, Any] = {
        "vocab_size": vocabulary + 8,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "max_position_embeddings": 128,
        "relative_attention": True,
        "pos_att_type": ("p2c", "c2p"),
        "position_biased_input": False,
        "position_buckets": 32,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "legacy": False,
        "initializer_range": 0.06,  # 0.02 is for widths near 1000: about 0.7 / sqrt(width)
    }
    return DebertaConfig(**{**fields, **changes})


def write_blank_model(output: Path) -> None:
    """Writes a directory with a vocabulary trained on the text and the config of a small v3 model, without weights."""
    config = small_config(VOCABULARY)
    blank = output / "blank"
    if not (blank / "config.json").is_file():
        _log.info("training a vocabulary of %d pieces", VOCABULARY)
        train_tokenizer(read_documents(output / "data" / "pretrain.txt"), VOCABULARY, blank)
        storage.write_json(blank / "config.json", config.to_hf())


def write_data(directory: Path) -> None:
    """Writes train.csv and held_out.csv (docstring, package), pretrain_held_out.txt and, as the last, pretrain.txt.

    Held-out docstrings are in no other file.
    """
    if (directory / "pretrain.txt").is_file():
        return
    storage.make_directory(directory)
    _log.info("reading the standard library's docstrings")
    docstrings = collect_docstrings()
    rng = np.random.default_rng(0)
    sizes = Counter(package for package, _ in docstrings)
    classes = sorted(name for name, _ in sizes.most_common(CLASSES))
    items: list[tuple[str, str]] = []
    for name in classes:
        of_class = [text for package, text in docstrings if package == name]
        items += [(of_class[i], name) for i in rng.permutation(len(of_class))[:PER_CLASS]]
    items = [items[i] for i in rng.permutation(len(items))]
    held_out = items[: int(HELD_OUT * len(items))]
    for file, rows in (("train.csv", items[len(held_out) :]), ("held_out.csv", held_out)):
        out = io.StringIO(newline="")
        csv.writer(out).writerows([("docstring", "package"), *rows])
        storage.write_text(directory / file, out.getvalue())
    unseen = {text for text, _ in held_out}
    paragraphs = [part for _, text in docstrings if text not in unseen for part in text.split("\n\n")]
    paragraphs += [part for text in topics() for part in text.split("\n\n")]
    lines = [" ".join(part.split()) for part in paragraphs]
    lines = [lines[i] for i in rng.permutation(len(lines)) if lines[i]]
    cut = len(lines) // 20
    storage.write_text(directory / "pretrain_held_out.txt", "\n".join(lines[:cut]) + "\n")
    storage.write_text(directory / "pretrain.txt", "\n".join(lines[cut:]) + "\n")


def collect_docstrings() -> list[tuple[str, str]]:
    """Returns (top-level module or package, docstring) for the standard library, each text once.

    The sources are parsed, not imported.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _SKIPPED & set(parts) or parts[0].startswith("config-"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some files of the library hold invalid escapes on purpose
            try:
                tree = ast.parse(storage.read_bytes(path))
            except (SyntaxError, ValueError):
                continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                if text and len(text.split()) >= 4:
                    found.setdefault(text, parts[0].removesuffix(".py"))
    return [(package, text) for text, package in found.items()]


def topics() -> list[str]:
    """Returns the topics of Python's ``help()``, which are parts of the language reference."""
    from pydoc_data.topics import topics as texts

    return list(texts.values())
