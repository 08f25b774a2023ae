"""``deberta-jax preflight``: what it reports, what it refuses and with which exit code, and what it leaves behind."""

import errno
import json
from pathlib import Path

import jax
import pytest

from deberta_jax.cli.main import main
from deberta_jax.storage import trial
from deberta_jax.training import preflight
from tests.made import refused, start
from tests.training.processes import port
from tests.weights import bucket


def test_one_process_is_reported_and_nothing_is_left(tmp_path, capsys):
    main(["preflight", "--output", str(tmp_path / "new" / "run"), "--mesh-fsdp", "2"])
    head, row, mesh, last = capsys.readouterr().out.splitlines()
    assert {"process", "host", "devices", "kind", "python", "jax", "jaxlib", "deberta_jax"} <= set(head.split())
    assert row.split()[0] == "0"
    assert jax.__version__ in row
    assert row.endswith("+0.000 s  written")
    assert mesh == "mesh: data 4, fsdp 2, tensor 1"
    assert last == "all checks passed"
    assert not list(tmp_path.iterdir())


def test_files_of_the_directory_stay(tmp_path):
    (tmp_path / "mine").write_text("mine")
    main(["preflight", "--output", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def failed(arguments, capsys) -> tuple[int, dict, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["preflight", "--json", *arguments])
    out, err = capsys.readouterr()
    return stopped.value.code, json.loads(out), err.splitlines()[-1]


def test_a_mesh_that_does_not_fit_is_a_problem_of_the_user(capsys):
    code, found, line = failed(["--mesh-fsdp", "3"], capsys)
    assert (code, found["passed"], found["mesh"]) == (2, False, None)
    assert [line] == [f"error: {problem}" for problem in found["problems"]]
    assert "does not fit 8 devices" in line
    assert found["processes"][0]["devices"] == 8


def test_an_output_that_is_a_file(tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    code, found, line = failed(["--output", str(tmp_path / "run"), "--mesh-fsdp", "3"], capsys)
    assert code == 2
    assert found["processes"][0]["output"] == "failed"
    assert f"--output {tmp_path / 'run'}: is a file" in found["problems"][1]
    assert line.endswith("(and 1 more)")


@pytest.mark.parametrize(("number", "code"), [(errno.EIO, 42), (errno.ENOSPC, 2)])
def test_a_disk_that_fails_while_it_is_written(tmp_path, capsys, monkeypatch, number, code):
    def fail(path, _):
        raise OSError(number, "failed", str(path))

    monkeypatch.setattr(trial, "write_bytes", fail)
    found, _, line = failed(["--output", str(tmp_path / "run")], capsys)
    assert found == code
    assert str(tmp_path / "run") in line
    assert not list(tmp_path.iterdir())


def test_a_disk_that_returns_something_else(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trial, "write_bytes", lambda path, content: path.write_bytes(content[:-1]))
    code, _, line = failed(["--output", str(tmp_path)], capsys)
    assert code == 2
    assert "does not return what was written" in line


def test_a_bucket_is_written_and_left_as_it_was(monkeypatch, capsys):
    with bucket.served(monkeypatch) as served:
        main(["preflight", "--output", "gs://bucket/runs/mine", "--json"])
        assert served.generation == 1, "one object was written"
        assert served.objects == {}
    assert json.loads(capsys.readouterr().out)["processes"][0]["output"] == "written"


@pytest.mark.parametrize(("error", "code"), [(ConnectionError("no route"), 42), (PermissionError("denied"), 2)])
def test_a_bucket_that_cannot_be_written(monkeypatch, capsys, error, code):
    def fail(*_, **__):
        raise error

    with bucket.served(monkeypatch):
        monkeypatch.setattr(bucket.REGISTRY["gcs"], "_open", fail)
        found, report, line = failed(["--output", "gs://bucket/runs/mine"], capsys)
    assert found == code
    assert "gs://bucket/runs/mine" in line
    assert report["processes"][0]["output"] == "failed"


def test_times_that_cannot_be_used(capsys):
    assert refused(["preflight", "--deadline", "0"], capsys) == "error: --deadline 0: must be at least 1"


OTHERS = {
    "jaxlib": ({"jaxlib": "0.1"}, "process 1 has jaxlib 0.1, process 0 has"),
    "python": ({"python": "3.1.5"}, "process 1 has python 3.1, process 0 has 3."),
    "patch of python": ({"python": "{minor}.99"}, None),
    "clock ahead": ({"time": 7.0}, "the clock of process 1 is 7.0 s ahead of that of process 0"),
    "clock behind": ({"time": -7.0}, "the clock of process 1 is 7.0 s behind that of process 0"),
    "clock near": ({"time": 3.0}, None),
    "output": ({"output": "other"}, "process 1 has output other, process 0 has"),
    "mesh": ({"mesh_options": "1 1 1"}, "process 1 has mesh_options 1 1 1, process 0 has -1 1 1"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_process_that_differs(monkeypatch, capsys, other):
    """The exchange of a second process that reports what the first one does, but for one value."""
    changes, problem = OTHERS[other]

    def exchange(report):
        theirs = dict(report)
        for name in theirs.keys() & changes.keys():
            change = changes[name]
            minor = theirs[name].rpartition(".")[0] if name == "python" else ""
            theirs[name] = theirs[name] + change if name == "time" else change.format(minor=minor)
        return [dict(report), theirs]

    monkeypatch.setattr(preflight, "exchange", exchange)
    if problem is None:
        main(["preflight"])
        assert "all checks passed" in capsys.readouterr().out
    else:
        code, found, line = failed([], capsys)
        assert code == 2
        assert len(found["processes"]) == 2
        assert line.startswith(f"error: {problem}")


# What a second host may be: another version, a clock that is ahead.
OTHER_HOST = """
import importlib.metadata, time
from deberta_jax.training import preflight
class Ahead:
    time = staticmethod(lambda: time.time() + 100)
preflight.time = Ahead
before = importlib.metadata.version
importlib.metadata.version = lambda name: "9.9" if name == "jaxlib" else before(name)
"""


@pytest.mark.system
def test_two_real_processes(tmp_path):
    """Alike; unlike in three ways; and one that waits for a second in vain."""
    (tmp_path / "other_host.py").write_text(OTHER_HOST)
    path = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}

    def begin(process, address, output, *more):
        joined = ["--coordinator", address, "--processes", "2", "--process", str(process), "--json"]
        return start(["preflight", *joined, "--output", str(output), *more], devices=2, **path)

    address = f"localhost:{port()}"
    alike = [begin(i, address, tmp_path / "shared" / "run") for i in range(2)]
    (out, err), (other_out, _) = (process.communicate(timeout=300) for process in alike)
    assert [process.returncode for process in alike] == [0, 0], err
    found = json.loads(out)
    assert found["passed"]
    assert found["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1}
    assert [row["output"] for row in found["processes"]] == ["written", "written"]
    assert abs(found["processes"][1]["clock_seconds"]) < preflight.CLOCK_SECONDS
    assert other_out == "", "process 0 alone prints"
    assert not (tmp_path / "shared").exists()

    address, lonely = f"localhost:{port()}", begin(0, f"localhost:{port()}", tmp_path, "--deadline", "5")
    unlike = [begin(0, address, tmp_path / "a"), begin(1, address, tmp_path / "b", "--plugin", "other_host")]
    (out, err), _ = (process.communicate(timeout=300) for process in unlike)
    assert [process.returncode for process in unlike] == [2, 2], err
    begins = (
        "process 1 has jaxlib 9.9",
        "process 1 has output",
        "the clock of process 1 is 100",
        "process 1: --output",
    )
    problems = json.loads(out)["problems"]
    assert all(line.startswith(start) for line, start in zip(problems, begins, strict=True)), problems
    assert "does not have the file that process 0 wrote" in problems[3]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["other_host.py"]

    _, err = lonely.communicate(timeout=300)
    assert lonely.returncode == 42
    assert "process 0 of 2 is here, but another one did not arrive within 5 s" in err.splitlines()[-1]
