"""What pre-training learns from 1.3M tokens on a CPU, and what fine-tuning gains from it.

    python benchmarks/pretraining.py DATA WORK mlm|rtd|finetune|dimensions|all

DATA holds ``text/*.txt`` and ``classification/sst2``. Text is lower-cased, as SST-2 is; one book is held out. SST-2 is
then learned from its first 1000 examples, with one budget and five seeds: from scratch, from each model, and from
one with reinitialized layers. ``dimensions``: in how many directions the states of each layer vary. What is in
WORK already is not computed again. Prints one JSON object; the result of this machine stands in
``benchmarks/results/pretraining.json``.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

import deberta_jax
from deberta_jax.training.demo import small_config

VOCABULARY = 4096
HELD_OUT = "sherlock_holmes"
SEEDS = 5
RUNS = {"mlm": (), "rtd": (), "rtd-longer": ("--steps", "9000")}  # the recipes as they stand, and one twice as long
LABELLED = 1000  # with all 6920 a shorter pre-training gained nothing (one seed: 0.757 from scratch, 0.758 after MLM)
CONFIG = Path(__file__).resolve().parent.parent / "configs" / "pretrain_laptop.py"


def prepare(data: Path, work: Path) -> None:
    """Lower-cased text, and a directory with a vocabulary and an architecture, without weights."""
    blank, folder = work / "blank", work / "text"
    if (blank / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((data / "text").glob("*.txt")):
        (folder / path.name).write_text(path.read_text(encoding="utf-8").lower(), encoding="utf-8")
    lines = [line for path in train_files(work) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    deberta_jax.train_tokenizer([line for line in lines if line.strip()], VOCABULARY, blank)
    # A few epochs of little text are not overfitted; fine-tuning has dropout.
    config = small_config(VOCABULARY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    (blank / "config.json").write_text(json.dumps(config.to_hf()))


def train_files(work: Path) -> list[str]:
    return [str(path) for path in sorted((work / "text").glob("*.txt")) if path.stem != HELD_OUT]


def command(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "deberta_jax.cli.main", *words], check=True, stdout=subprocess.PIPE)
    return done.stdout.decode()


def pretrain(work: Path, name: str) -> dict:
    """The figures on the held-out book, by step, and the seconds it took."""
    output, kind = work / name, name.split("-")[0]
    command(
        "pretrain",
        kind,
        "--config",
        f"{CONFIG}:{kind}",
        *RUNS[name],
        "--model",
        str(work / "blank"),
        "--train",
        *train_files(work),
        "--eval",
        str(work / "text" / f"{HELD_OUT}.txt"),
        "--output",
        str(output),
    )
    read = lambda file: [json.loads(line) for line in (output / file).read_text().splitlines()]
    entries = read("log.jsonl")
    speeds = [entry["tokens_per_second"] for entry in entries if "tokens_per_second" in entry]
    return {
        "seconds": round(sum(session["seconds"] for session in read("sessions.jsonl"))),
        "tokens_per_second": statistics.median(speeds),
        "held_out": [{"step": entry["step"], **entry["eval"]} for entry in entries if "eval" in entry],
    }


def pretrained(work: Path, name: str) -> Path:
    """Where a run's model lies that can be fine-tuned."""
    return work / name if name == "mlm" else work / name / "discriminator"


def starting_point(work: Path, source: Path) -> Path:
    """A copy of a model directory that has dropout, which fine-tuning wants and this pre-training did not. Its name
    follows from the weights: another pre-training is another copy."""
    weights = source / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:8] if weights.is_file() else "blank"
    model, begun = work / f"start-{digest}", work / "start-begun"
    if not model.is_dir():
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir()
        for path in source.iterdir():
            if path.name in ("model.safetensors", "config.json") or path.suffix in (".model", ".json"):
                shutil.copy(path, begun / path.name)
        config = json.loads((begun / "config.json").read_text())
        config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
        (begun / "config.json").write_text(json.dumps(config))
        begun.rename(model)
    return model


def finetune(data: Path, work: Path) -> dict:
    """Dev accuracies of SST-2 by start and seed."""
    source, train = data / "classification" / "sst2", work / f"train{LABELLED}.tsv"
    lines = (source / "train.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    train.write_text("".join(lines[: LABELLED + 1]), encoding="utf-8")
    starts: dict = {"scratch": (work / "blank", ("--from-scratch",))}
    starts |= {name: (pretrained(work, name), ()) for name in RUNS}
    for count, layers in ((1, "last layer"), (2, "both layers")):
        starts[f"rtd-longer, {layers} anew"] = (starts["rtd-longer"][0], ("--reinit-layers", str(count)))
    out: dict = {name: [] for name in starts}
    for seed in range(SEEDS):
        for name, (begin, words) in starts.items():
            model = starting_point(work, begin)
            run = work / f"sst2-{name.replace(', ', '-').replace(' ', '-')}-{model.name}-{seed}"
            command(
                "finetune",
                "--model",
                str(model),
                *words,
                "--train",
                str(train),
                "--eval",
                str(source / "dev.tsv"),
                "--text",
                "sentence",
                "--label",
                "label",
                "--output",
                str(run),
                "--epochs",
                "5",
                "--batch-size",
                "32",
                "--max-length",
                "64",
                "--learning-rate",
                "1e-3",
                "--seed",
                str(seed),
            )
            out[name].append(json.loads((run / "result.json").read_text())["metrics"]["accuracy"])
            print(name, seed, out[name][-1], file=sys.stderr)
    report = {}
    for name, found in out.items():
        gains = [ours - scratch for ours, scratch in zip(found, out["scratch"], strict=True)]
        report[name] = {"accuracies": found, "median": statistics.median(found)}
        if name != "scratch":
            report[name] |= {
                "mean gain": statistics.mean(gains),
                "its standard error": statistics.stdev(gains) / SEEDS**0.5,
            }
    return report


def dimensions(data: Path, work: Path) -> dict:
    """By layer, from the embeddings on: (sum of variances) squared over the sum of their squares, along the principal
    axes of the states of 256 sentences' real tokens; the width where all directions vary alike, 1 where one does."""
    lines = (data / "classification" / "sst2" / "dev.tsv").read_text(encoding="utf-8").splitlines()
    column = lines[0].split("\t").index("sentence")
    sentences = [line.split("\t")[column] for line in lines[1:257]]
    tokens = deberta_jax.load_tokenizer(work / "blank")(sentences, padding="longest")
    mask = np.asarray(tokens.attention_mask)
    found = {}
    for name in RUNS:
        model, params = deberta_jax.from_pretrained(pretrained(work, name), head="encoder")
        out = model.apply({"params": params}, tokens.input_ids, attention_mask=mask, output_hidden_states=True)
        found[name] = []
        for states in out.hidden_states:
            variances = np.linalg.eigvalsh(np.cov(np.asarray(states, np.float64)[mask != 0].T))
            found[name].append(round(float(variances.sum() ** 2 / np.square(variances).sum()), 1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("part", choices=("mlm", "rtd", "finetune", "dimensions", "all"))
    args = parser.parse_args()
    prepare(args.data, args.work)
    result: dict = {"cores": os.cpu_count(), "held_out": HELD_OUT, "vocabulary": VOCABULARY}
    for name in RUNS:
        if args.part in (name.split("-")[0], "all"):
            result[name] = pretrain(args.work, name)
    if args.part in ("finetune", "all"):
        result["sst2"] = finetune(args.data, args.work)
    if args.part in ("dimensions", "all"):
        result["dimensions"] = dimensions(args.data, args.work)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
