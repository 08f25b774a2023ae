"""How well and how fast ``deberta-jax finetune`` learns SST-2 from nothing: accuracy per seed, seconds, parameters.

    python benchmarks/sst2_from_scratch.py FOLDER_WITH_TRAIN_AND_DEV_TSV [--seeds 3]

Prints one JSON object; the result of this machine stands in ``benchmarks/results/sst2_from_scratch.json``.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

import deberta_jax
from deberta_jax.data.tables import read_table
from deberta_jax.models import abstract_params
from deberta_jax.training.demo import small_config

VOCABULARY = 4000
CONFIG = Path(__file__).resolve().parent.parent / "configs" / "sst2_from_scratch.py"


def blank_model(data: Path, directory: Path) -> None:
    """A vocabulary trained on the training sentences and a two-layer architecture, without weights."""
    deberta_jax.train_tokenizer(read_table(data / "train.tsv").texts("sentence"), VOCABULARY, directory)
    config = small_config(VOCABULARY, initializer_range=0.02)
    (directory / "config.json").write_text(json.dumps(config.to_hf()))


def command(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "deberta_jax.cli.main", *words], check=True, stdout=subprocess.PIPE)
    return done.stdout.decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        blank = Path(folder) / "blank"
        blank_model(args.data, blank)
        train, dev = str(args.data / "train.tsv"), str(args.data / "dev.tsv")
        for seed in range(args.seeds):
            run = str(Path(folder) / f"run{seed}")
            began = time.perf_counter()
            command(
                "finetune",
                "--config",
                str(CONFIG),
                "--model",
                str(blank),
                "--train",
                train,
                "--eval",
                dev,
                "--output",
                run,
                "--seed",
                str(seed),
            )
            seconds = time.perf_counter() - began
            evaluated = json.loads(command("evaluate", "--model", run, "--data", dev, "--text", "sentence"))
            lines = command("predict", "--model", run, "--input", dev, "--text", "sentence", "--output", "-")
            labels = read_table(dev).column("label")
            predicted = [json.loads(line)["label"] for line in lines.splitlines()]
            right = sum(p == t for p, t in zip(predicted, labels, strict=True)) / len(labels)
            assert right == evaluated["accuracy"], (right, evaluated)
            runs.append({"seed": seed, "accuracy": evaluated["accuracy"], "seconds": round(seconds, 1)})
            print(runs[-1], file=sys.stderr)
        model, _ = deberta_jax.from_pretrained(run, head="sequence-classification")
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(model)))
    accuracies = [r["accuracy"] for r in runs]
    summary = {
        "cores": os.cpu_count(),
        "parameters": parameters,
        "median_accuracy": statistics.median(accuracies),
        "worst_accuracy": min(accuracies),
        "runs": runs,
    }
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
