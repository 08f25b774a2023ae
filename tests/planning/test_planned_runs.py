"""``--plan`` of a run about to start: it goes on as if it had not been planned, or is refused with the numbers."""

import json

import pytest
from safetensors.numpy import load_file

from deberta_jax.cli import planned
from deberta_jax.cli.main import main
from tests.made import stdout_of

FEW = 64 << 10


@pytest.mark.system
def test_a_planned_run_ends_as_the_same_run_without_a_plan(task, tmp_path):
    ends = []
    for name, more in (("planned", ["--plan", "here"]), ("plain", [])):
        printed = json.loads(stdout_of(task.arguments(tmp_path / name, "--epochs", "1", *more)))
        del printed["output"]
        ends.append((printed, load_file(tmp_path / name / "model.safetensors")))
    (metrics, weights), (expected, wanted) = ends
    assert metrics == expected
    assert weights.keys() == wanted.keys()
    assert all((weights[name] == wanted[name]).all() for name in wanted)


def test_a_run_that_cannot_fit_is_refused_before_it_writes(task, tmp_path, capsys, monkeypatch):
    # The machine's memory is all that is not real here.
    monkeypatch.setattr(planned.os, "sysconf", lambda name: 1 if name == "SC_PAGE_SIZE" else 8 * FEW)
    with pytest.raises(SystemExit) as ended:
        main(task.arguments(tmp_path / "run", "--plan", "here"))
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("error: --plan here: a device would need ")
    assert "and has 65.5 kB; share parameters with --mesh-fsdp" in last
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("plan", "told"), [("v5e:3x5", "there is no such slice"), ("there", "cpu:8, or here")])
def test_errors_name_the_flag_that_was_typed(plan, told, task, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(task.arguments(tmp_path / "run", "--plan", plan))
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: --plan {plan}: ")
    assert told in last


def test_a_plan_for_elsewhere_starts_nothing(task, tmp_path, capsys):
    main(task.arguments(tmp_path / "run", "--plan", "cpu:4"))
    out, err = capsys.readouterr()
    assert "memory a chip" in out + err
    assert not (tmp_path / "run").exists()
