"""Memory and time of ``predict`` on files of very different lengths, and of its parts alone.

    python benchmarks/streaming.py [--rows 10000 1000000] [--layers 2] [--width 64] [--record FILE.json]

A small model answers short made-up texts, in a process of its own for each length. Given are the peak memory
of each process; and for the longest file the time of the whole command over that of its two necessary parts, measured
in one process: tokenization of all texts, and the forward passes on ready tokens.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

import deberta_jax
from deberta_jax.cli.main import main as command
from deberta_jax.data.features import make_features

WORDS = ("the", "film", "was", "a", "slow", "warm", "story", "about", "two", "old", "friends", "who", "lose", "again")
CHILD = """
import resource, sys
from deberta_jax.cli.main import main
main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def write_model(directory: Path, layers: int, width: int) -> None:
    """A classifier with random weights and a tokenizer of the made-up texts' words."""
    tokenizer = deberta_jax.train_tokenizer([" ".join(WORDS)] * 50, 360, directory / "tokenizer")
    config = deberta_jax.PRESETS["deberta-v3-xsmall"].replace(
        vocab_size=tokenizer.vocab_size,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width,
        id2label=("no", "yes"),
    )
    model = deberta_jax.DebertaForSequenceClassification(config)
    params = jax.jit(lambda: deberta_jax.init_params(model, jax.random.key(0)))()
    deberta_jax.save_pretrained(directory / "model", model, params, tokenizer=tokenizer)


def write_texts(path: Path, rows: int) -> None:
    draw = random.Random(0)
    with path.open("w") as file:
        for _ in range(rows):
            file.write(json.dumps({"text": " ".join(draw.choices(WORDS, k=draw.randint(3, 9)))}) + "\n")


def arguments(directory: Path, rows: int) -> list[str]:
    names = {"model": directory / "model", "input": directory / f"{rows}.jsonl", "output": directory / f"{rows}.out"}
    return ["predict", *(word for name, path in names.items() for word in (f"--{name}", str(path)))]


def peak_megabytes(directory: Path, rows: int) -> float:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments(directory, rows)], check=True, capture_output=True, text=True
    )
    return int(done.stderr.split()[-1]) / 1024


def seconds_of_parts(directory: Path, rows: int) -> dict[str, float]:
    """Of the command, and of tokenization and the forward passes alone, after the programs are compiled."""
    pipe = deberta_jax.pipeline("text-classification", str(directory / "model"))
    texts = [json.loads(line)["text"] for line in (directory / f"{rows}.jsonl").open()]
    few = make_features(pipe.tokenizer, texts[:4096], None, max_length=512)
    pipe.predictor.logits(pipe.params, few)
    began = time.perf_counter()
    parts = [make_features(pipe.tokenizer, texts[i : i + 2048], None, max_length=512) for i in range(0, rows, 2048)]
    tokenized = time.perf_counter()
    for part in parts:
        pipe.predictor.logits(pipe.params, part)
    computed = time.perf_counter()
    del parts
    command(arguments(directory, rows))
    ended = time.perf_counter()
    return {"tokenization": tokenized - began, "forward": computed - tokenized, "command": ended - computed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_model(directory, args.layers, args.width)
        found: dict[str, object] = {"layers": args.layers, "width": args.width, "jax": jax.__version__, "peak MB": {}}
        for rows in args.rows:
            write_texts(directory / f"{rows}.jsonl", rows)
            found["peak MB"][rows] = round(peak_megabytes(directory, rows))
            print(found, flush=True)
        seconds = seconds_of_parts(directory, max(args.rows))
        ratio = seconds["command"] / (seconds["tokenization"] + seconds["forward"])
        found |= {"seconds": {key: round(value, 1) for key, value in seconds.items()}, "ratio": round(ratio, 3)}
        print(found)
    if args.record:
        args.record.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
