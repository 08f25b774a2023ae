"""The command ``serve`` as a process: signals, clients that are slow or many, and logs that cannot be written."""

import http.client
import json
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import deberta_jax
from tests.made import rows
from tests.serving.served import MAX_LENGTH, process, served_models

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return served_models(tmp_path_factory.mktemp("process"), "classifier")[0]


class Asker:
    """Sends requests over one connection that is kept."""

    def __init__(self, port: int):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, text: str) -> list[dict]:
        body = json.dumps({"inputs": text, "truncate": True})
        self.connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        found = json.loads(answer.read())
        assert answer.status == 200, found
        return found


def test_sigterm_under_load_ends_after_the_last_answer(model, tmp_path):
    with process(tmp_path / "log", model) as (server, client):
        client.wait_ready()
        answered, cut, refused = [], [], []

        def ask_until_the_end(number):
            asker = Asker(client.port)
            while True:
                try:
                    answered.append(asker.ask(f"ban kost {number}"))
                except http.client.IncompleteRead as error:
                    cut.append(error)
                    return
                except (ConnectionError, http.client.HTTPException, OSError):
                    return  # refused, or closed between two requests
                except AssertionError as error:
                    refused.append(str(error))
                    return

        threads = [threading.Thread(target=ask_until_the_end, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        for thread in threads:
            thread.join(60)
        assert len(answered) > 12
        assert not cut
        assert all("stopping" in message for message in refused)
        log = (tmp_path / "log").read_text()
        assert log.endswith("stopped\n")
        assert "Traceback" not in log


def test_a_signal_while_it_compiles_ends_it_too(model, tmp_path):
    with process(tmp_path / "log", model, env={"JAX_ENABLE_COMPILATION_CACHE": "false"}) as (server, client):
        health = client.get("/health")
        assert (health.status, health.body["error_type"]) in ((503, "Unhealthy"), (200, None))
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0


def test_slow_clients_are_ended_and_others_are_served(model, tmp_path):
    with process(tmp_path / "log", model, "--read-timeout", "1") as (_, client):
        client.wait_ready()
        head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        slow = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(40)]
        for number, connection in enumerate(slow):
            connection.settimeout(30)
            connection.sendall(head if number % 2 else head + b"Content-Length: 100\r\n\r\n{")
        assert client.post("/predict", inputs="ban").status == 200
        for number, connection in enumerate(slow):
            answer = b""
            while part := connection.recv(4096):
                answer += part
            # Without the end of its head a request has no answer.
            assert answer == b"" if number % 2 else answer.startswith(b"HTTP/1.1 408 ")
            connection.close()
        assert client.post("/predict", inputs="ban").status == 200
        assert client.metric("deberta_jax_requests_in_flight") == 0


def test_a_full_disk_for_logs_stops_nothing(model, tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    environment = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    log = tmp_path / "log"
    with process(log, model, "--log-requests", preexec_fn=limit, env=environment) as (server, client):
        client.wait_ready()
        for _ in range(150):
            assert client.post("/predict", inputs="ban").status == 200
        assert log.stat().st_size == 4096
        assert client.metric("deberta_jax_log_failures_total") > 0
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


def test_bad_input_is_one_line_and_status_2(model, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, said in (([model, "--port", port], "cannot listen there"), ([tmp_path / "none"], "no such")):
            command = [sys.executable, "-m", "deberta_jax", "serve", *map(str, arguments)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 2
            assert said in done.stderr.splitlines()[-1]
            assert "Traceback" not in done.stderr


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def ask_all(port: int, texts: list[str], clients: int) -> list[list[dict]]:
    """The answers to all texts, of so many clients that ask at once."""
    local = threading.local()

    def ask(text):
        if not hasattr(local, "asker"):
            local.asker = Asker(port)
        return local.asker.ask(text)

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(ask, texts))


@pytest.mark.long
def test_ten_thousand_answers_under_load_are_those_of_the_pipeline(model, tmp_path):
    texts = [f"{text} {number}"[:40] for number, (text, _) in enumerate(rows(10_000, classes=3, seed=8))]
    expected = deberta_jax.pipeline("text-classification", model, max_length=MAX_LENGTH)(
        texts, top_k=None, truncation=True
    )
    with process(tmp_path / "log", model, "--max-rows", "16") as (_, client):
        client.wait_ready()
        found = ask_all(client.port, texts, 64)
        for answer, own in zip(found, expected, strict=True):
            scores = {one["label"]: one["score"] for one in answer}
            assert scores == pytest.approx({one["label"]: one["score"] for one in own}, abs=1e-5)
        assert client.metric("deberta_jax_requests_total") == 10_000
        assert client.metric("deberta_jax_compilations_after_ready_total") == 0


@pytest.mark.long
def test_memory_stays_the_same_over_a_hundred_thousand_requests(model, tmp_path):
    texts = [text for text, _ in rows(10_000, classes=3, seed=8)]
    with process(tmp_path / "log", model, "--max-rows", "16") as (server, client):
        client.wait_ready()
        ask_all(client.port, texts, 16)
        before = resident_bytes(server.pid)
        for _ in range(9):
            ask_all(client.port, texts, 16)
        assert resident_bytes(server.pid) < 1.05 * before
        assert client.metric("deberta_jax_compilations_after_ready_total") == 0
