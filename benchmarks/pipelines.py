"""Answers of ``deberta_jax.pipeline`` beside those of transformers' pipeline, in one process, for the same weights.

    python benchmarks/pipelines.py TOKENIZER DATA [--preset deberta-v3-base] [--rounds 5] [--record FILE.json]

TOKENIZER is a directory with a tokenizer of the preset's generation, DATA one with ``classification/sst2`` and
``qa/xquad_en_train.json``. Weights are random. Each pipeline has called its programs before the clock runs; then they
take turns. Given are our median times over theirs; transformers has the batch size of 1, 8 and 32 that is fastest for
it. Absolute times mean nothing on a shared machine.
"""

import argparse
import csv
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import torch
import transformers
from timing import in_turn, keep_memory

import deberta_jax

LABELS = ("entailment", "neutral", "contradiction")
TOPICS = ("sports", "politics", "film", "music", "food", "travel", "science", "health", "money", "weather")
BATCHES = (1, 8, 32)


def save_model(preset: str, tokenizer: Any, directory: str) -> None:
    """Saves a classifier with random weights, and the tokenizer."""
    config = deberta_jax.PRESETS[preset].replace(id2label=LABELS)
    model = deberta_jax.DebertaForSequenceClassification(config)
    params = jax.jit(lambda: deberta_jax.init_params(model, jax.random.key(0)))()
    deberta_jax.save_pretrained(directory, model, params, tokenizer=tokenizer)


def reviews(data: Path, count: int) -> list[str]:
    with open(next((data / "classification" / "sst2").glob("dev*")), encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    column = rows[0].index("sentence")
    return [row[column] for row in rows[1 : 1 + count]]


def paragraphs(data: Path, count: int) -> list[str]:
    content = json.loads((data / "qa" / "xquad_en_train.json").read_text())
    return [p["context"] for article in content["data"] for p in article["paragraphs"]][:count]


def ratio(ours: Callable[[], Any], theirs: dict[int, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    runs = {"ours": ours, **{f"batch {size}": run for size, run in theirs.items()}}
    times = in_turn(runs, rounds)
    best = min((name for name in times if name != "ours"), key=times.__getitem__)
    return {"ratio": round(times["ours"] / times[best], 3), "theirs": best, "seconds": times}


def measure(directory: str, texts: dict[str, list[str]], zero_shot: list[str], rounds: int) -> dict[str, Any]:
    """Returns the ratio for each list of texts, and for zero-shot classification."""
    torch.set_grad_enabled(False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory).eval()
    parts = {"model": model, "tokenizer": tokenizer, "device": "cpu"}
    ours = deberta_jax.pipeline("text-classification", directory)
    theirs = transformers.pipeline("text-classification", **parts)
    found = {}
    for name, group in texts.items():
        call = lambda size, group=group: lambda: list(theirs(group, batch_size=size, truncation=True, max_length=512))
        sizes = {size: call(size) for size in BATCHES if size <= max(1, len(group))}
        found[name] = ratio(lambda group=group: ours(group if len(group) > 1 else group[0]), sizes, rounds)
        print(name, found[name], flush=True)
    if zero_shot:
        ours, theirs = (deberta_jax.pipeline("zero-shot-classification", directory), transformers.pipeline)
        theirs = theirs("zero-shot-classification", **parts)
        call = lambda size: lambda: theirs(zero_shot, list(TOPICS), batch_size=size)
        sizes = {size: call(size) for size in BATCHES}
        found["zero-shot, 10 labels"] = ratio(lambda: ours(zero_shot, list(TOPICS)), sizes, rounds)
        print("zero-shot, 10 labels", found["zero-shot, 10 labels"], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("data", type=Path)
    parser.add_argument("--preset", default="deberta-v3-base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--zero-shot", type=int, default=200, help="texts of zero-shot classification; 0 leaves it out")
    parser.add_argument("--mixed", type=int, default=32, help="short and long texts each of mixed lengths; 0: none")
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    keep_memory()
    texts = {"1 text": ["The film is short and good, and it has a story."], "32 texts": reviews(args.data, 32)}
    if args.mixed:
        short, long = reviews(args.data, args.mixed), paragraphs(args.data, args.mixed)
        texts["mixed lengths"] = [text for pair in zip(short, long, strict=True) for text in pair]
    with tempfile.TemporaryDirectory() as directory:
        save_model(args.preset, deberta_jax.load_tokenizer(args.tokenizer), directory)
        found = measure(directory, texts, reviews(args.data, args.zero_shot), args.rounds)
    if args.record:
        versions = {name: module.__version__ for name, module in (("jax", jax), ("torch", torch))}
        args.record.write_text(json.dumps({"preset": args.preset, **versions, "results": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
