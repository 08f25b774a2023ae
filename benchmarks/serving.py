"""Requests a second of ``deberta-jax serve`` beside other servers, with the same weights, clients and texts.

    python benchmarks/serving.py TOKENIZER DATA [--peer fastapi=PYTHON] [--peer infinity=PYTHON] [--record FILE.json]

TOKENIZER is a directory with a tokenizer of the preset's generation, DATA one with ``classification/sst2`` and
``qa/xquad_en_train.json``. PYTHON is an interpreter that has the peer's packages: fastapi, uvicorn, torch and
transformers for ``serving_peer.py``; infinity-emb, which needs numpy < 2, for the other. Weights are random. All
servers run at the same time, and only one of them is asked; they take turns, and medians count. Absolute figures mean
nothing on a shared machine.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipelines import paragraphs, reviews, save_model

import deberta_jax

HERE = Path(__file__).resolve().parent


def command(kind: str, python: str, model: str, port: int, length: int) -> list[str]:
    """Returns the command of a server."""
    if kind == "ours":
        return [python, "-m", "deberta_jax", "serve", model, "--port", str(port), "--max-length", str(length)]
    if kind == "fastapi":
        return [python, str(HERE / "serving_peer.py"), model, str(port), str(length)]
    if kind == "infinity":
        options = [
            "--model-id",
            model,
            "--port",
            str(port),
            "--engine",
            "torch",
            "--device",
            "cpu",
            "--no-bettertransformer",
        ]
        return [str(Path(python).with_name("infinity_emb")), "v2", *options]
    raise SystemExit(f"no peer {kind}; there are fastapi and infinity")


def request_of(kind: str, model: str, text: str) -> tuple[str, dict[str, Any]]:
    """Returns the address and the body of a request."""
    if kind == "infinity":
        return "/classify", {"input": [text], "model": Path(model).name, "raw_scores": False}
    return "/predict", {"inputs": text, "truncate": True} if kind == "ours" else {"inputs": text}


@contextlib.contextmanager
def server(kind: str, python: str, model: str, port: int, length: int, log: Path) -> Iterator[None]:
    """A server that is ready, as a process."""
    with log.open("wb") as file:
        running = subprocess.Popen(command(kind, python, model, port, length), stdout=file, stderr=file)
    try:
        for _ in range(3600):
            if running.poll() is not None:
                raise SystemExit(f"{kind} has ended: {log.read_text()[-2000:]}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            time.sleep(0.5)
        yield
    finally:
        running.terminate()
        running.wait(60)


def load(kind: str, model: str, port: int, texts: list[str], clients: int) -> dict[str, float]:
    """Sends all texts, from so many clients at once. Returns requests a second and percentiles in milliseconds."""
    local = threading.local()

    def ask(text: str) -> float:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        path, body = request_of(kind, model, text)
        began = time.perf_counter()
        local.connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = local.connection.getresponse()
        read = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{kind}: status {answer.status}, {read[:200]!r}")
        return time.perf_counter() - began

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = sorted(pool.map(ask, texts))
    total = time.perf_counter() - began
    at = lambda share: 1000 * times[min(len(times) - 1, int(share * len(times)))]
    return {"requests/s": len(texts) / total, "p50": at(0.5), "p95": at(0.95), "p99": at(0.99)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("data", type=Path)
    parser.add_argument("--preset", default="deberta-v3-base")
    parser.add_argument("--peer", action="append", default=[], metavar="KIND=PYTHON")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", type=Path)
    o = parser.parse_args()
    half = o.texts // 2
    texts = reviews(o.data, half) + paragraphs(o.data, o.texts - half)
    random.Random(0).shuffle(texts)
    kinds = {"ours": sys.executable, **dict(peer.split("=", 1) for peer in o.peer)}
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    alone: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as home, contextlib.ExitStack() as servers:
        model = str(Path(home, "model"))
        save_model(o.preset, deberta_jax.load_tokenizer(o.tokenizer), model)
        ports = {kind: 18100 + number for number, kind in enumerate(kinds)}
        for kind, python in kinds.items():
            servers.enter_context(server(kind, python, model, ports[kind], o.max_length, Path(home, f"{kind}.log")))
            load(kind, model, ports[kind], texts[:32], 8)
        for _ in range(o.rounds):
            for kind in kinds:
                found[kind].append(load(kind, model, ports[kind], texts, o.clients))
                alone[kind].append(load(kind, model, ports[kind], texts[:16], 1))
    median = lambda rounds: {key: round(statistics.median(one[key] for one in rounds), 2) for key in rounds[0]}
    rows = {kind: {"load": median(found[kind]), "alone": median(alone[kind])} for kind in kinds}
    for kind, row in rows.items():
        ratio = statistics.median(
            mine["requests/s"] / theirs["requests/s"] for mine, theirs in zip(found["ours"], found[kind], strict=True)
        )
        row["ours/this"] = {"requests/s": round(ratio, 2)}
        print(f"{kind:9}", json.dumps(row))
    if o.record:
        o.record.write_text(json.dumps({"options": vars(o), "load average": os.getloadavg(), **rows}, default=str))


if __name__ == "__main__":
    main()
