"""A server in this process for tests, tiny models of every task, and a client that knows only HTTP."""

import contextlib
import dataclasses
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import deberta_jax
from deberta_jax.serving.options import ServeOptions
from deberta_jax.serving.server import Server
from tests.made import TINY, make_tokenizer, saved_model

MAX_LENGTH = 32

HEADS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "classifier": (deberta_jax.DebertaForSequenceClassification, ("pos", "neg", "other")),
    "ranker": (deberta_jax.DebertaForSequenceClassification, ("LABEL_0",)),
    "nli": (deberta_jax.DebertaForSequenceClassification, ("entailment", "neutral", "contradiction")),
    "tagger": (deberta_jax.DebertaForTokenClassification, ("O", "B-PER", "I-PER")),
    "reader": (deberta_jax.DebertaForQuestionAnswering, ("LABEL_0", "LABEL_1")),
    "masked": (deberta_jax.DebertaForMaskedLM, ("LABEL_0", "LABEL_1")),
    "encoder": (deberta_jax.DebertaEncoder, ("LABEL_0", "LABEL_1")),
}


def served_models(home: Path, *names: str) -> list[Path]:
    """Directories of tiny models with random weights, by the names in ``HEADS``; all if none is given."""
    tokenizer = make_tokenizer(home / "tokenizer")
    made = []
    for name in names or HEADS:
        kind, labels = HEADS[name]
        made.append(saved_model(home / name, kind(dataclasses.replace(TINY, id2label=labels)), tokenizer, seed=3))
    return made


def options(*models: Path, **given: Any) -> ServeOptions:
    """Options of a small server on a free port."""
    small = {"port": 0, "max_length": MAX_LENGTH, "max_rows": 8}
    return ServeOptions(models=tuple(map(str, models)), **{**small, **given})


class Reply(NamedTuple):
    """What a server answers."""

    status: int
    body: Any
    headers: dict[str, str]


class Client:
    """Sends requests to a server on this machine, over one connection each."""

    def __init__(self, port: int, token: str | None = None):
        self.port, self.token = port, token

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        with contextlib.closing(connection):
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            text, found = answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        is_json = found.get("content-type") == "application/json"
        return Reply(answer.status, json.loads(text) if is_json else text.decode(), found)

    def get(self, path: str) -> Reply:
        return self.request("GET", path)

    def raw(self, path: str, body: bytes) -> Reply:
        return self.request("POST", path, body, Content_Type="application/json")

    def post(self, path: str, **fields: Any) -> Reply:
        return self.raw(path, json.dumps(fields).encode())

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = [line for line in self.get("/metrics").body.splitlines() if line.partition("{")[0].split()[0] == name]
        return sum(float(line.split()[-1]) for line in lines)

    def wait_ready(self, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if self.get("/health").status == 200:
                    return
            time.sleep(0.05)
        raise AssertionError("the server was never ready")


@contextlib.contextmanager
def running(given: ServeOptions, token: str | None = None) -> Iterator[tuple[Client, Server]]:
    """A server that is ready, in a thread of this process, and a client of it."""
    server = Server(given)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        client = Client(int(server.address.rstrip("/").rpartition(":")[2]), token)
        client.wait_ready()
        yield client, server
    finally:
        server.stop()
        thread.join(60)
    assert not thread.is_alive(), "the server stops"


@contextlib.contextmanager
def process(log: Path, *arguments: Any, **options: Any) -> Iterator[tuple[subprocess.Popen[bytes], Client]]:
    """The command ``serve`` as a process with one device, that writes its messages to ``log``, and a client of it."""
    small = ["--port", "0", "--max-length", MAX_LENGTH, "--max-rows", "4"]
    command = [sys.executable, "-m", "deberta_jax", "serve", *small, *arguments]
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"} | options.pop("env", {})
    with log.open("wb") as file:
        started = subprocess.Popen(list(map(str, command)), stderr=file, stdout=file, env=environment, **options)
    try:
        yield started, Client(_port_in(log, started))
    finally:
        started.kill()
        started.wait()


def _port_in(log: Path, started: subprocess.Popen[bytes]) -> int:
    """The port that a server says it listens on."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = re.search(r"listening on http://127\.0\.0\.1:(\d+)/", log.read_text())
        if found:
            return int(found[1])
        assert started.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(f"the server does not listen: {log.read_text()}")
