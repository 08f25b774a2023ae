"""Memory and shares of work of ``finetune`` on tables that are larger than memory should hold.

    python benchmarks/large_tables.py [--csv 1000] [--parquet 5000] [--steps 50] [--record FILE.json]

A csv file of so many megabytes is trained on by one process, and by two that share no disk but the output; a parquet
file by one. The model is tiny; a run is ended by a signal after so many steps. Given are, for each process, the peak
memory as the system counts it (mapped files included), the rows that it tokenized, and its processor time until
all tokens are made. Files are made in a temporary directory, which needs about five times their size.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

import deberta_jax

CHILD = """
import sys
from pathlib import Path
from deberta_jax.cli.main import main
from deberta_jax.tasks.text_classification import TextTask

features = TextTask.features

def counted(self, table, *arguments, **named):
    with open(sys.argv[1], "a") as file:
        file.write(f"{len(table)}\\n")
    return features(self, table, *arguments, **named)

TextTask.features = counted
main(sys.argv[2:])
"""
HELD_OUT = 200


def words() -> list[str]:
    draw = random.Random(0)
    parts = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    return ["".join(draw.choices(parts, k=draw.randint(1, 4))) for _ in range(20_000)]


def rows() -> Iterator[tuple[str, str]]:
    """Texts of 200 to 800 characters, without end, each with one of two labels."""
    draw, known = random.Random(1), words()
    while True:
        text = " ".join(draw.choices(known, k=draw.randint(30, 110)))
        yield text, draw.choice(("no", "yes"))


def write_csv(path: Path, megabytes: float) -> int:
    """Returns the number of rows."""
    count = 0
    with path.open("w") as file:
        file.write("text,label\n")
        for text, label in rows():
            file.write(f"{text},{label}\n")
            count += 1
            if count % 1000 == 0 and file.tell() > megabytes * 1e6:
                return count
    return count


def write_parquet(path: Path, megabytes: float) -> int:
    """Returns the number of rows. Row groups are as large as pandas writes them, and nothing is compressed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, count, made = pa.schema({"text": pa.string(), "label": pa.string()}), 0, rows()
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        while not path.exists() or path.stat().st_size < megabytes * 1e6:
            some = [next(made) for _ in range(200_000)]
            table = pa.table({"text": [text for text, _ in some], "label": [label for _, label in some]}, schema)
            writer.write_table(table, row_group_size=1 << 20)
            count += len(some)
    return count


def write_model(directory: Path) -> None:
    """A config with a tokenizer of the made-up words, and no weights."""
    tokenizer = deberta_jax.train_tokenizer([" ".join(words())], 2000, directory)
    config = deberta_jax.PRESETS["deberta-v3-xsmall"].replace(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    (directory / "config.json").write_text(json.dumps(config.to_hf()))


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def steps_logged(output: Path) -> int:
    log = output / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return max((json.loads(line).get("step", 0) for line in lines if line.endswith("}")), default=0)


def run(directory: Path, train: Path, name: str, processes: int, steps: int) -> list[dict[str, Any]]:
    """Trains so many steps. Returns what each process needed."""
    output = directory / name / "run"
    output.parent.mkdir()
    command = ["finetune", "--model", str(directory / "model"), "--from-scratch", "--train", str(train)]
    command += ["--eval", str(directory / "eval.csv"), "--text", "text", "--label", "label", "--output", str(output)]
    command += ["--max-length", "128", "--batch-size", "32", "--epochs", "1", "--log-every", "1"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    if processes > 1:
        command += ["--coordinator", address, "--processes", str(processes), "--mesh-data", str(processes)]
        command += ["--heartbeat", "600"]
    running, began = [], time.monotonic()
    for i in range(processes):
        own = ["--process", str(i)] if processes > 1 else []
        environment = {**os.environ, "XDG_CACHE_HOME": str(directory / name / f"cache{i}"), "JAX_PLATFORMS": "cpu"}
        with (directory / name / f"messages{i}").open("w") as messages:
            counted = str(directory / name / f"rows{i}")
            child = [sys.executable, "-c", CHILD, counted, *command, *own]
            running.append(subprocess.Popen(child, env=environment, stderr=messages, stdout=subprocess.DEVNULL))
    found: list[dict[str, Any]] = [{} for _ in running]
    while steps_logged(output) < steps and all(process.poll() is None for process in running):
        # The first process says how many steps there are when all tokens are made.
        if not found[0] and " steps of " in (directory / name / "messages0").read_text():
            for process, figures in zip(running, found, strict=True):
                figures["processor seconds until the tokens are made"] = round(processor_seconds(process.pid), 1)
                figures["seconds until the tokens are made"] = round(time.monotonic() - began, 1)
        time.sleep(0.2)
    if running[0].poll() is None:
        running[0].send_signal(signal.SIGTERM)  # stops all after the same step
    for i, (process, figures) in enumerate(zip(running, found, strict=True)):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        told = (directory / name / f"messages{i}").read_text()
        if process.returncode not in (0, 128 + signal.SIGTERM):
            raise SystemExit(f"{name}: exit code {process.returncode}\n{told[-3000:]}")
        figures["peak memory MB"] = round(usage.ru_maxrss / 1000)
        figures["tokenized rows"] = sum(map(int, (directory / name / f"rows{i}").read_text().split())) - (
            HELD_OUT if i == 0 else 0  # process 0 makes the only part of the table to evaluate on
        )
    print(name, found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=float, default=1000, help="megabytes; 0: none")
    parser.add_argument("--parquet", type=float, default=5000, help="megabytes; 0: none")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    found: dict[str, Any] = {"cores": os.cpu_count(), "jax": jax.__version__, "steps": args.steps}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_model(directory / "model")
        write_csv(directory / "eval.csv", 0)
        lines = (directory / "eval.csv").read_text().splitlines(keepends=True)
        (directory / "eval.csv").write_text("".join(lines[: HELD_OUT + 1]))
        if args.csv:
            train = directory / "train.csv"
            count = write_csv(train, args.csv)
            about: dict[str, Any] = {"megabytes": round(train.stat().st_size / 1e6), "rows": count}
            for processes, label in ((1, "one process"), (2, "two processes")):
                about[label] = run(directory, train, f"csv{processes}", processes, args.steps)
            found["csv"] = about
        if args.parquet:
            train = directory / "train.parquet"
            count = write_parquet(train, args.parquet)
            about = {"megabytes": round(train.stat().st_size / 1e6), "rows": count}
            found["parquet"] = about | {"one process": run(directory, train, "parquet", 1, args.steps)}
    print(json.dumps(found, indent=1))
    if args.record:
        args.record.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
