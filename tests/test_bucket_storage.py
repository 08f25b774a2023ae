"""Storage in a bucket: what a reader finds, what an error says, and which exit code it has."""

import base64
import hashlib

import pytest

from deberta_jax import storage
from deberta_jax.cli.main import main
from deberta_jax.data.hub_datasets import digest
from deberta_jax.errors import InputError, RunAgainError
from tests.weights import bucket

HOME = "gs://bucket/a/model"


@pytest.fixture
def cloud(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with bucket.served(monkeypatch) as served:
        yield served
    assert not list(tmp_path.glob("gs*"))


def content(served) -> dict[str, bytes]:
    return {name.removeprefix("bucket/a/"): raw for name, (raw, _) in served.objects.items()}


def test_after_an_error_nothing_is_uploaded(cloud):
    storage.write_text(f"{HOME}/log", "old")

    def write():
        with storage.writing(f"{HOME}/log") as file:
            file.write(b"half")
            raise ZeroDivisionError

    def stage():
        with storage.staged(storage.as_path(HOME), last="config.json") as directory:
            storage.write_text(directory / "config.json", "{}")
            raise ZeroDivisionError

    for call in (write, stage):
        with pytest.raises(ZeroDivisionError):
            call()
    assert content(cloud) == {"model/log": b"old"}


def test_a_directory_loses_its_last_file_first_and_gets_it_last(cloud, monkeypatch):
    for name in ("config.json", "model.safetensors", "stale.bin", "notes.txt", "params/old"):
        storage.write_text(f"{HOME}/{name}", "old")
    seen, put = [], cloud.put

    def watch(name, raw):
        seen.append("config.json" in {key.rpartition("/")[2] for key in cloud.objects})
        return put(name, raw)

    monkeypatch.setattr(cloud, "put", watch)
    with storage.staged(storage.as_path(HOME), last="config.json", stale=("stale*",)) as stage:
        storage.make_directory(stage / "params")
        for name in ("config.json", "model.safetensors", "params/new"):
            storage.write_text(stage / name, "new")
    assert seen == [False] * 3, "a reader that finds config.json finds all"
    new = {f"model/{name}": b"new" for name in ("config.json", "model.safetensors", "params/new")}
    assert content(cloud) == new | {"model/notes.txt": b"old"}
    latest = max(cloud.objects, key=lambda name: cloud.objects[name][1])
    assert latest == "bucket/a/model/config.json"


def test_the_digest_of_an_object_is_asked_for_and_the_object_not_read(cloud, monkeypatch):
    url = f"{HOME}/train.csv"
    storage.write_text(url, "text,label\na,b\n")
    read = lambda *_, **__: pytest.fail("the object is read")
    with monkeypatch.context() as patched:
        patched.setattr("deberta_jax.data.files.stored", read)
        first = digest(url)
        raw = hashlib.md5(b"text,label\na,b\n").digest()
        assert first == f"md5Hash:{base64.b64encode(raw).decode()}:15"
        storage.write_text(url, "text,label\na,c\n")
        assert digest(url) != first
        with pytest.raises(InputError, match="there is nothing of that name"):
            digest(f"{HOME}/missing.csv")
    assert storage.size_of(url) == 15
    assert storage.size_of(f"{HOME}/missing.csv") == 0


def test_a_copy_follows_the_objects(cloud):
    for name in ("config.json", "state/1/big", "model.safetensors"):
        storage.write_text(f"{HOME}/{name}", "1")
    whole = lambda names: [name for name in names if not name.startswith("state/")]
    first = storage.local_copy(HOME, whole)
    assert first.name == "model"
    assert sorted(path.name for path in first.iterdir()) == ["config.json", "model.safetensors"]
    assert storage.local_copy(f"{HOME}/", whole) == first
    storage.write_text(f"{HOME}/config.json", "22")
    second = storage.local_copy(HOME, whole)
    assert (first / "config.json").read_text() == "1"
    assert (second / "config.json").read_text() == "22"
    with pytest.raises(InputError, match="there is nothing of that name"):
        storage.local_copy("gs://bucket/none", whole)
    cloud.put("bucket/a/odd/../../x", b"")
    with pytest.raises(InputError, match="is no path"):
        storage.local_copy("gs://bucket/a/odd", lambda names: names)


def test_logs_files_and_rests(cloud):
    path = storage.as_path(HOME) / "log.jsonl"
    assert storage.read_json_lines(path) == []
    storage.write_json_lines(path, [{"step": 1}])
    assert storage.read_json_lines(path) == [{"step": 1}]
    assert storage.files_below(storage.as_path("gs://bucket/a"), "log.jsonl") == [path]
    assert storage.beside(f"{HOME}/x.csv", "y") == f"{HOME}/y"
    storage.remove(path)
    storage.remove(path)
    assert content(cloud) == {}


def test_an_interrupted_command_finds_its_lines(cloud, tmp_path):
    name = f"{HOME}/answers.jsonl"

    def interrupted():
        with storage.resumable_lines("--output", name, {"a": 1}) as lines:
            lines.write("1\n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert content(cloud) == {}
    with storage.resumable_lines("--output", name, {"a": 1}) as lines:
        assert lines.count == 1
        lines.write("2\n")
    assert content(cloud) == {"model/answers.jsonl": b"1\n2\n"}
    assert not list((tmp_path / "cache" / "deberta_jax" / "unfinished").iterdir())


class HttpError(Exception):
    """As gcsfs raises it."""

    def __init__(self, code: int):
        super().__init__(f"the service says {code}")
        self.code = code


HttpError.__module__ = "gcsfs.retry"

FAILURES = [
    (OSError("Forbidden: b/bucket/o\nno permission"), 2, "give this account the permission to read, write, list"),
    (FileNotFoundError("b/bucket/o"), 2, "its bucket does not exist, or this account may not see it; make it"),
    (HttpError(401), 2, "the service says 401"),
    (HttpError(503), 42, "run the same command again"),
    (ConnectionRefusedError(111, "refused"), 42, "run the same command again"),
    (TimeoutError(), 42, "run the same command again"),
]


@pytest.mark.parametrize(("error", "code", "message"), FAILURES)
def test_failures_are_one_line_with_the_code_of_the_table(cloud, monkeypatch, capsys, error, code, message):
    def fail(*_):
        raise error

    monkeypatch.setattr(cloud, "put", fail)
    for check in (storage.check_output_directory, storage.check_output_file):
        with pytest.raises(InputError if code == 2 else RunAgainError, match=message) as caught:
            check("--output", HOME)
        assert str(caught.value).startswith(f"--output {HOME}: ")
        assert "\n" not in str(caught.value)
    found = storage.client_error(error)
    assert (found is None) == (not isinstance(error, HttpError) and "Forbidden" not in str(error))
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "gs://bucket/none", "--output", "gs://bucket/c.json"])
    assert stopped.value.code == 2  # nothing is written, as there is no run
    assert "error: gs://bucket/none: holds no run" in capsys.readouterr().err


def test_options_that_write_to_disks_alone_are_refused(cloud, capsys):
    for arguments, message in (
        (["demo", "--output", HOME], "must be on a local disk"),
        (["predict", "--model", HOME, "--input", "x.jsonl", "--output", f"{HOME}/y", "--processes", "2"], "local path"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert content(cloud) == {}
