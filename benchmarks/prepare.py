"""``deberta-jax prepare`` against ``datasets.map`` with transformers' fast tokenizer, on generated text.

Both have the same tokenizer, text and cores, and take turns, each in a process of its own. Of ``datasets`` only ``map``
is timed, with the better of processes and the tokenizer's own threads; what it needs before, reading the text into its
cache, is told apart. Of ``prepare`` all is timed, from reading to writing, and starting processes.
Memory is the highest that the operating system saw in the first process, and in the largest of the others.

Needs PyTorch's friends: ``pip install transformers datasets``, best into an environment of their own:

    python -m venv --system-site-packages peer && peer/bin/pip install transformers datasets
    python benchmarks/prepare.py --peer-python peer/bin/python                       # 50 MB, a minute or two
    python benchmarks/prepare.py --peer-python peer/bin/python --megabytes 1000 --peer-megabytes 100 --rounds 1 --write

``--peer-megabytes``: the peer reads only so much of such text, for its speed does not grow with it, and its time does.

``--tokenizer`` is a directory with spm.model; without it a vocabulary is trained on what the text is made of: words of
the standard library's docstrings drawn at random, or of ``--words`` files.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).with_name("results") / "prepare.json"
SMALL = 50  # megabytes: what the memory of a larger text is compared with
TRIED = 4  # megabytes: what shows how the peer is faster


def highest(pid: int) -> float:
    """Highest resident memory of a process so far, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(status.split("VmHWM:")[1].split()[0]) / 1024, 1)


def ours(text: str, tokenizer: str, output: str, workers: int) -> dict:
    from deberta_jax.data.prepare import Prepare, prepare
    from deberta_jax.text import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    others: dict[int, float] = {}
    looks = [0]

    def progress(read: int, total: int, documents: int, tokens: int) -> None:
        if documents // 5000 > looks[0]:  # now and then: to look costs time
            looks[0] = documents // 5000
            others.update((process.pid, highest(process.pid)) for process in multiprocessing.active_children())

    begin = time.perf_counter()
    manifest = prepare(Prepare(inputs=(text,), output=output, workers=workers), loaded, progress)
    seconds = time.perf_counter() - begin
    memory = {"first": highest(os.getpid()), "largest_other": max(others.values(), default=0)}
    return {"seconds": seconds, "tokens": manifest["tokens"], "memory_mb": memory}


def peer(text: str, tokenizer: str, output: str, workers: int) -> dict:
    """``workers`` 0: no processes, the tokenizer's threads."""
    import datasets
    import transformers

    os.environ["TOKENIZERS_PARALLELISM"] = "false" if workers else "true"
    fast = transformers.DebertaV2Tokenizer.from_pretrained(tokenizer)
    assert fast.is_fast
    datasets.disable_progress_bars()
    begin = time.perf_counter()
    lines = datasets.load_dataset("text", data_files=text, split="train", cache_dir=output)
    read = time.perf_counter() - begin

    def encode(batch):
        return fast(
            batch["text"],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )

    begin = time.perf_counter()
    mapped = lines.map(encode, batched=True, num_proc=workers or None, remove_columns=["text"])
    seconds = time.perf_counter() - begin
    import pyarrow.compute as pc

    tokens = pc.sum(pc.list_value_length(mapped.data.column("input_ids"))).as_py()
    return {"seconds": seconds, "reading_seconds": read, "tokens": tokens, "memory_mb": {"first": highest(os.getpid())}}


def words_of(files: list[str]) -> list[str]:
    if files:
        return [word for file in files for word in Path(file).read_text(encoding="utf-8").split()]
    from deberta_jax.training.demo_text import collect_docstrings

    return [word for _, text in collect_docstrings() for word in text.split()]


def generate(path: Path, words: list[str], megabytes: int) -> None:
    """Lines of 5 to 200 words, each drawn as often as it is in ``words``."""
    draw, written = random.Random(0), 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 1_000_000:
            lines = (" ".join(draw.choices(words, k=draw.randint(5, 200))) for _ in range(500))
            written += file.write("\n".join(lines) + "\n")


def measured(python: str, who: str, text: Path, tokenizer: str, workers: int) -> dict:
    """One run in a process of its own, whose output is deleted."""
    with tempfile.TemporaryDirectory(dir=text.parent) as folder:
        command = [python, __file__, "--run", who, str(text), tokenizer, f"{folder}/out", str(workers)]
        path = os.pathsep.join(map(str, [Path(__file__).parents[1], os.environ.get("PYTHONPATH", "")]))
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": folder,
            "PYTHONPATH": path,
            "JAX_PLATFORMS": "cpu",
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        who, text, tokenizer, output, workers = sys.argv[2:]
        print(json.dumps({"ours": ours, "peer": peer}[who](text, tokenizer, output, int(workers))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=SMALL)
    parser.add_argument("--peer-megabytes", type=int, default=0, help="0: as much as we")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizer")
    parser.add_argument("--words", nargs="*", default=[])
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = words_of(args.words)
        tokenizer = args.tokenizer or f"{folder}/tokenizer"
        if not args.tokenizer:
            from deberta_jax.text import train_tokenizer

            train_tokenizer((" ".join(words[i : i + 50]) for i in range(0, len(words), 50)), 8000, tokenizer)
        small, text = Path(folder) / "small.txt", Path(folder) / "text.txt"
        generate(text, words, TRIED)
        tried = {workers: measured(args.peer_python, "peer", text, tokenizer, workers) for workers in (0, args.cores)}
        best = min(tried, key=lambda workers: tried[workers]["seconds"])
        print("peer alone:", {workers: round(run["seconds"], 1) for workers, run in tried.items()}, flush=True)
        generate(small, words, SMALL)
        generate(text, words, args.megabytes)
        texts = {"ours": text, "peer": text}
        if args.peer_megabytes:
            texts["peer"] = Path(folder) / "peer.txt"
            generate(texts["peer"], words, args.peer_megabytes)
        sizes = {who: path.stat().st_size / 1e6 for who, path in texts.items()}
        in_small = measured(sys.executable, "ours", small, tokenizer, args.cores)
        found: dict[str, list[dict]] = {"ours": [], "peer": []}
        for _ in range(args.rounds):
            for who, python, workers in (("ours", sys.executable, args.cores), ("peer", args.peer_python, best)):
                found[who].append(measured(python, who, texts[who], tokenizer, workers))
                rate = sizes[who] / found[who][-1]["seconds"]
                print(f"{who}: {rate:.2f} MB/s", json.dumps(found[who][-1]), flush=True)
    speed = {who: statistics.median(sizes[who] / run["seconds"] for run in runs) for who, runs in found.items()}
    report = {
        "megabytes": {who: round(size, 1) for who, size in sizes.items()},
        "cores": args.cores,
        "tokenizer": Path(tokenizer).name,
        "peer": f"datasets.map, {f'{best} processes' if best else 'threads of the tokenizer'}",
        "megabytes_per_second": {who: round(value, 2) for who, value in speed.items()},
        "ratio": round(speed["ours"] / speed["peer"], 2),
        "tokens": {who: runs[0]["tokens"] for who, runs in found.items()},
        "memory_mb": {f"{SMALL} MB": in_small["memory_mb"], f"{sizes['ours']:.0f} MB": found["ours"][0]["memory_mb"]},
        "runs": found,
    }
    print(json.dumps({name: value for name, value in report.items() if name != "runs"}, indent=1))
    if args.write:
        RESULT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
