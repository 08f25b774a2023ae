"""Names to directories, against a local server that speaks the hub's endpoints."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deberta_jax import hub
from deberta_jax.errors import InputError
from tests.made import TINY, weighted_model
from tests.weights.files import raw_config, state_of, torch_zip

COMMIT, OLDER = "a" * 40, "b" * 40


class Server(http.server.ThreadingHTTPServer):
    """Repositories by id and commit; remembers what was asked for. ``breaks``: bytes after which a download is cut."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.token: str | None = None
        self.breaks: int | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        path = self.path.split("?")[0].strip("/")
        self.server.asked.append((self.command, path, self.headers.get("Range")))
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.fail(401, "RepoNotFound")
        parts = path.split("/")
        if parts[:2] == ["api", "models"]:
            return self.describe("/".join(parts[2:4]), parts)
        repo, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        commit = self.commit(repo, revision)
        if commit is None:
            return None
        if name not in self.server.files[repo][commit]:
            return self.fail(404, "EntryNotFound")
        return self.send_file(self.server.files[repo][commit][name], commit, body)

    def commit(self, repo: str, revision: str) -> str | None:
        if repo not in self.server.files:
            self.fail(404, "RepoNotFound")
            return None
        commit = {"main": COMMIT}.get(revision, revision)
        if commit not in self.server.files[repo]:
            self.fail(404, "RevisionNotFound")
            return None
        return commit

    def describe(self, repo: str, parts: list[str]):
        commit = self.commit(repo, parts[5] if len(parts) > 5 else "main")
        if commit is None:
            return
        files = self.server.files[repo][commit]
        tree = [
            {"type": "file", "path": n, "size": len(r), "oid": hashlib.sha1(r).hexdigest()} for n, r in files.items()
        ]
        siblings = [{"rfilename": name} for name in files]
        answer = tree if parts[4:5] == ["tree"] else {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings}
        raw = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def send_file(self, raw: bytes, commit: str, body: bool):
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{hashlib.sha256(raw).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(raw) - 1}/{len(raw)}")
        self.send_header("Content-Length", str(len(raw) - start))
        self.end_headers()
        if not body:
            return
        if self.server.breaks is not None and len(raw) > self.server.breaks:
            stop, self.server.breaks = self.server.breaks, None
            self.wfile.write(raw[start:stop])
            self.wfile.flush()
            self.connection.close()
            return
        self.wfile.write(raw[start:])

    def fail(self, code: int, kind: str):
        self.send_response(code)
        self.send_header("X-Error-Code", kind)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def ask(server, tmp_path):
    """Runs code in a fresh process that has this hub and an empty cache; gives its JSON answer, or its error line."""

    def run(code: str, **environment: str):
        program = (
            "import json, sys, types\n"
            # The package without its front page, whose imports take longer than the test.
            "sys.modules['deberta_jax'] = package = types.ModuleType('deberta_jax')\n"
            f"package.__path__ = {[str(Path(hub.__file__).parent)]!r}\n"
            "from deberta_jax import hub\n"
            "from deberta_jax.errors import InputError\n"
            "try:\n"
            f"    print(json.dumps({code}))\n"
            "except InputError as error:\n"
            "    print(json.dumps('error: ' + str(error)))\n"
        )
        keep = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        settings = {
            "HF_ENDPOINT": server.address,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env={**keep, **settings, **environment},
            cwd=Path.cwd(),
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def contents(count: int = 3) -> dict[str, bytes]:
    config = json.dumps(raw_config("v3", num_labels=count)).encode()
    weights = torch_zip(state_of("v3", ("pooler", "classifier"), labels=count))
    return {
        "config.json": config,
        "pytorch_model.bin": weights,
        "tokenizer_config.json": b"{}",
        "spm.model": b"x",
        "tf_model.h5": b"y" * 100,
        "README.md": b"z",
        "pytorch_model.generator.bin": b"g",
    }


def test_a_directory_or_a_file_in_one_is_taken_as_it_is(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.resolve(tmp_path / "weights.bin") == tmp_path
    assert hub.split_file(str(tmp_path / "weights.bin")) == (str(tmp_path), "weights.bin")
    assert hub.split_file("org/model/weights.bin") == ("org/model", "weights.bin")
    assert hub.split_file("org/model") == ("org/model", None)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/place", "a/b/c/d", "~/nothing here", "", "a b"])
def test_what_cannot_be_a_hub_id_is_refused_without_asking(name):
    with pytest.raises(InputError, match="no such directory"):
        hub.resolve(name)


def test_importing_the_package_does_not_import_the_hub_client():
    code = "import sys, deberta_jax.weights; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path.cwd())
    assert done.stdout.strip() == "False", done.stderr


def test_an_adapters_repository_has_its_weights_and_settings_fetched(server, ask):
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x", "README.md": b"y", "optimizer.pt": b"z"}
    server.files["org/adapter"] = {COMMIT: files}
    assert ask(FILES.format("'org/adapter'")) == ["adapter_config.json", "adapter_model.safetensors"]


FILES = "sorted(p.name for p in hub.resolve({}).iterdir())"


def test_fetches_one_format_of_weights_and_the_text_files_then_needs_no_network(server, ask):
    server.files["org/model"] = {COMMIT: contents()}
    expected = ["config.json", "pytorch_model.bin", "spm.model", "tokenizer_config.json"]
    assert ask(FILES.format("'org/model'")) == expected
    assert ask(FILES.format("'org/model', files=['*.json']")) == expected  # the same snapshot
    server.asked.clear()
    assert ask(FILES.format("'org/model'"), HF_HUB_OFFLINE="1") == expected
    assert server.asked == []


def test_safetensors_are_preferred(server, ask):
    server.files["org/model"] = {COMMIT: contents() | {"model.safetensors": b"s"}}
    found = ask(FILES.format("'org/model'"))
    assert "model.safetensors" in found
    assert "pytorch_model.bin" not in found


def test_a_file_of_a_repository_can_be_named(server, ask):
    server.files["org/model"] = {COMMIT: contents()}
    found = ask(FILES.format("'org/model/pytorch_model.generator.bin'"))
    assert found == ["config.json", "pytorch_model.generator.bin", "spm.model", "tokenizer_config.json"]


@pytest.mark.system
def test_loads_and_converts_a_hub_id_at_a_pinned_commit(server, ask, tmp_path):
    server.files["org/model"] = {COMMIT: contents(3), OLDER: contents(5)}
    convert = (
        "__import__('deberta_jax.weights', fromlist=['x']).convert('org/model', {!r}, to='hf', revision={!r}).notes"
    )
    for revision, labels in ((None, 3), (OLDER, 5)):
        out = tmp_path / str(labels)
        assert ask(convert.format(str(out), revision)) == []
        assert len(json.loads((out / "config.json").read_text())["id2label"]) == labels
        assert (out / "spm.model").read_bytes() == b"x"


@pytest.mark.system
def test_inference_loads_a_revision(server, ask, tmp_path):
    server.files["org/model"] = {}
    config = TINY.replace(num_hidden_layers=1)
    for commit, model in ((COMMIT, config.replace(num_labels=3)), (OLDER, config.replace(num_labels=5))):
        files = weighted_model(tmp_path / commit[0], model).iterdir()
        server.files["org/model"][commit] = {file.name: file.read_bytes() for file in files if file.is_file()}
    names = ("pipelines", "cross_encoder", "embedding")
    pipelines, cross_encoder, embedding = (
        f"__import__('deberta_jax.inference.{name}', fromlist=['x'])" for name in names
    )
    code = (
        f"[{pipelines}.pipeline('text-classification', 'org/model', revision={{0!r}}).model.config.num_labels,"
        f" {cross_encoder}.CrossEncoder('org/model', revision={{0!r}}).num_labels,"
        f" len({embedding}.Embedder('org/model', revision={{0!r}}).model.config.id2label)]"
    )
    assert ask(code.format(None)) == [3, 3, 3]
    assert ask(code.format(OLDER)) == [5, 5, 5]


def test_an_interrupted_download_goes_on_where_it_stopped(server, ask):
    raw = os.urandom(24 << 20)
    server.files["org/model"] = {COMMIT: contents() | {"pytorch_model.bin": raw}}
    server.breaks = 15 << 20
    for _ in range(2):  # the client may go on by itself, or when it is asked again
        answer = ask("str(hub.resolve('org/model'))")
    assert (Path(answer) / "pytorch_model.bin").read_bytes() == raw
    ranges = [asked for _, path, asked in server.asked if path.endswith("pytorch_model.bin") and asked]
    assert len(ranges) == 1
    assert int(ranges[0].removeprefix("bytes=").removesuffix("-")) > 1 << 20


@pytest.mark.parametrize(
    ("code", "settings", "says"),
    [
        ("hub.resolve('org/none').name", {}, "org/none: no such directory, and no such hub repository"),
        ("hub.resolve('org/model', revision='gone').name", {}, "no revision 'gone'"),
        ("hub.resolve('org/empty').name", {}, "has no weights"),
        ("hub.resolve('org/model').name", {"HF_HUB_OFFLINE": "1"}, "out of reach and its cache lacks it"),
        ("hub.resolve('org/model').name", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "no such directory, and the hub"),
    ],
)
def test_what_the_hub_lacks_is_said_in_one_line(code, settings, says, server, ask):
    server.files["org/model"] = {COMMIT: contents()}
    server.files["org/empty"] = {COMMIT: {"config.json": b"{}"}}
    answer = ask(code, **settings)
    assert answer.startswith("error: ")
    assert says in answer
    assert "\n" not in answer


def test_tokens_are_sent_and_asked_for(server, ask):
    server.files["org/model"] = {COMMIT: contents()}
    server.token = "hf_secret"
    assert "needs HF_TOKEN" in ask("hub.resolve('org/model').name")
    assert ask("hub.resolve('org/model').name", HF_TOKEN="hf_secret") == COMMIT
