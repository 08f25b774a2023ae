"""The GPU kit's processes: what crashes, hangs, raises or takes too long costs itself alone, and is reported."""

import json
import sys
import time

import kit
import pytest
from runner import ROOT, Part, run_part

CASES = '''
import json, os, sys, time, types
from pathlib import Path
from worker import Case, Skip

def good():
    print("a library's own words on standard output")
    return {"value": 7, "process": os.getpid()}

def raises():
    raise ValueError("a made error\\nwith a second line")

def skips():
    raise Skip("no such library")

def wrong():
    return {"status": "failed"}

def hangs():
    while True:
        time.sleep(60)

def dies():
    print("last words", file=sys.stderr, flush=True)
    os.abort()

def breaks_the_device():
    def ones(*shape, device):
        raise RuntimeError("an illegal memory access was encountered")
    sys.modules["torch"] = types.SimpleNamespace(
        cuda=types.SimpleNamespace(is_initialized=lambda: True), ones=ones)
    raise RuntimeError("an illegal memory access was encountered")

def sleeps():
    time.sleep(1.0)
    return {}

def reads_results():
    """Waits for the row of the case before it, which the kit writes while this one runs."""
    for _ in range(100):
        parts = json.loads(Path(os.environ["RESULTS"]).read_text())["parts"]
        if "attention-torch" in parts:
            break
        time.sleep(0.1)
    return {"on disk": {name: sorted(part["rows"]) for name, part in parts.items()}}
'''


@pytest.fixture
def part(tmp_path, monkeypatch):
    """Makes a part of cases that are named by their function, or by group and function."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(*names: str, seconds=60.0, case_seconds=20.0, name="attention-jax", **environment) -> Part:
        module = f"cases_of_{name.replace('-', '_')}"
        lines = [f"Case({case!r}, {case.split()[-1].split('-')[0]}, {case.split()[0]!r})" for case in names]
        listed = f"\ndef cases(request):\n    return [{', '.join(lines)}]\n"
        (tmp_path / f"{module}.py").write_text(CASES + listed)
        return Part(name, module, seconds, case_seconds, environment)

    return make


def run(part: Part) -> dict:
    seen = []
    progress = run_part(
        part, tiny=True, extra=None, seconds=part.seconds, ended=lambda name, row: seen.append((name, row))
    )
    assert dict(seen) == progress.rows
    assert len(seen) == len(progress.rows), "a case ended twice"
    return vars(progress)


def test_what_raises_hangs_or_dies_costs_itself_alone(part):
    names = ("good", "raises", "good-2", "hangs", "good-3", "dies", "skips", "wrong", "good-4")
    began = time.monotonic()
    found = run(part(*names, case_seconds=2.0))
    assert time.monotonic() - began < 20
    rows = found["rows"]
    assert not found["failed"]
    assert not found["reason"]
    assert [(name, rows[name]["status"]) for name in names] == [
        ("good", "ok"),
        ("raises", "error"),
        ("good-2", "ok"),
        ("hangs", "stopped"),
        ("good-3", "ok"),
        ("dies", "died"),
        ("skips", "skipped"),
        ("wrong", "failed"),
        ("good-4", "ok"),
    ]
    assert all(rows[name]["value"] == 7 for name in names if name.startswith("good"))
    assert rows["raises"]["reason"] == "ValueError: a made error"
    assert "in raises" in rows["raises"]["traceback"]
    assert rows["hangs"]["reason"] == "stopped: no result within 2 s"
    assert "in hangs" in rows["hangs"]["stderr"], "where it hung is said"
    assert rows["dies"]["reason"] == "its process ended: signal SIGABRT"
    assert "last words" in rows["dies"]["stderr"]
    assert rows["skips"]["reason"] == "no such library"
    # The first three share a process; each of those that ended one was followed by another.
    processes = [rows[name]["process"] for name in ("good", "good-2", "good-3", "good-4")]
    assert processes[0] == processes[1]
    assert len(set(processes)) == 3


def test_a_device_that_an_error_left_unusable_is_met_by_a_new_process(part):
    rows = run(part("good", "breaks_the_device", "good-2"))["rows"]
    assert [row["status"] for row in rows.values()] == ["ok", "error", "ok"]
    assert rows["good"]["process"] != rows["good-2"]["process"]


def test_a_group_that_keeps_failing_is_left_out(part):
    rows = run(part("x dies", "y good", "x dies-2", "x good", "y good-2"))["rows"]
    assert {name: row["status"] for name, row in rows.items()} == {
        "x dies": "died",
        "y good": "ok",
        "x dies-2": "died",
        "x good": "skipped",
        "y good-2": "ok",
    }
    assert rows["x good"]["reason"] == "x died or was stopped 2 times before"


def test_what_does_not_fit_into_the_time_is_skipped(part, monkeypatch):
    monkeypatch.setattr("runner.RESTART_SECONDS", 0.5)
    names = [f"sleeps-{n}" for n in range(9)]
    began = time.monotonic()
    found = run(part(*names, seconds=5.0))
    assert time.monotonic() - began < 10
    statuses = [found["rows"][name]["status"] for name in names]
    done = statuses.count("ok")
    assert 1 <= done <= 4
    assert statuses == ["ok"] * done + ["skipped"] * (9 - done)
    assert found["reason"] == "its time was used up"
    assert not found["failed"]
    assert "time was used up" in found["rows"]["sleeps-8"]["reason"]
    assert run(part("good", seconds=0.1)) == {
        "cases": {},
        "rows": {},
        "reason": "no time was left for it",
        "failed": False,
    }


def test_a_part_whose_module_does_not_start_is_reported(part):
    broken = part("good")
    found = run(Part("model-jax", "no_such_module", 30, 5))
    assert found["failed"]
    assert not found["rows"]
    assert "No module named 'no_such_module'" in found["reason"]
    assert run(broken)["rows"]["good"]["status"] == "ok"


MACHINE = """
from worker import Case

def cases(request):
    return [Case("jax", lambda: {"backend": "gpu", "card": "NVIDIA Made-up 9 (80GB)"})]
"""


def run_main(monkeypatch, capsys, *parts, arguments=()) -> tuple[int, str]:
    monkeypatch.setattr(kit, "PARTS", parts)
    monkeypatch.setattr(sys, "argv", ["kit.py", *arguments])
    monkeypatch.setattr(kit.signal, "signal", lambda *_: None)
    return kit.main(), capsys.readouterr().out


def test_a_part_that_fails_does_not_stop_the_next(part, tmp_path, monkeypatch, capsys):
    (tmp_path / "made_machine.py").write_text(MACHINE)
    monkeypatch.setattr(kit, "RESULTS", tmp_path / "results")
    written = tmp_path / "results" / "gpu_nvidia-made-up-9-80gb.json"
    code, out = run_main(
        monkeypatch,
        capsys,
        Part("machine", "made_machine", 30, 5),
        Part("correctness", "no_such_module", 30, 5),
        part("hangs", "raises", case_seconds=1.0),
        part("good", "reads_results", name="attention-torch", RESULTS=str(written)),
    )
    results = json.loads(written.read_text())
    assert code == 1
    assert results["state"] == "complete"
    assert [path.name for path in written.parent.iterdir()] == [written.name]
    assert list(results["parts"]) == ["machine", "correctness", "attention-jax", "attention-torch"]
    assert results["parts"]["correctness"]["failed"]
    assert "No module named 'no_such_module'" in results["parts"]["correctness"]["reason"]
    assert "no case could be run" in out
    assert "hangs: stopped: no result within 1 s" in out
    # While the last case ran, the file held all that had ended before.
    on_disk = results["parts"]["attention-torch"]["rows"]["reads_results"]["on disk"]
    assert on_disk == {
        "machine": ["jax"],
        "correctness": [],
        "attention-jax": ["hangs", "raises"],
        "attention-torch": ["good"],
    }


def test_without_a_gpu_nothing_is_measured(part, tmp_path, monkeypatch, capsys):
    (tmp_path / "made_machine.py").write_text(MACHINE.replace("gpu", "cpu"))
    monkeypatch.setattr(kit, "RESULTS", tmp_path / "results")
    code, out = run_main(monkeypatch, capsys, Part("machine", "made_machine", 30, 5), part("good"))
    assert code == 2
    assert "attention-jax" not in out
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--tiny", "--output", str(ROOT / "benchmarks" / "results" / "x.json")], "tiny results are not kept in"),
        (["--extra", "nowhere.py:f"], "give FILE.py:FUNCTION of an existing file"),
        (["--only", "everything"], "invalid choice"),
    ],
)
def test_bad_arguments_are_refused(arguments, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kit.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        kit.main()
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


def test_all_parts_together_take_nine_minutes():
    assert sum(part.seconds for part in kit.PARTS) <= 9 * 60
