"""Comparisons of runs against pandas: which settings differ, mean and deviation over seeds, the files written."""

import dataclasses
import io
import json

import numpy as np
import pandas as pd
import pytest

from deberta_jax import training
from deberta_jax.errors import InputError
from deberta_jax.training.experiment import run_record
from deberta_jax.training.sweeps import point_name, with_settings
from tests.made import refused, stdout_of

BASE = training.Finetune(model="m", task="text-classification", text=("a",), label="b")


def make_run(directory, experiment, metrics):
    """The files of a run; ``metrics`` None: it is not finished."""
    directory.mkdir(parents=True)
    (directory / "experiment.json").write_text(json.dumps(run_record(experiment, {}) | {"hash": "x"}))
    if metrics is not None:
        (directory / "result.json").write_text(json.dumps({"step": 3, "metrics": metrics}))


@pytest.fixture
def runs(tmp_path):
    """Two learning rates by two ranks, three seeds each, one of which is not finished; and the metrics as rows."""
    rng, rows = np.random.default_rng(0), []
    for rate in (1e-5, 3e-5):
        for rank in (0, 8):
            for seed in range(3):
                e = with_settings(BASE, {"learning_rate": rate, "lora": rank, "seed": seed, "log_every": seed + 1})
                metrics = {"accuracy": float(rng.random()), "loss": float(rng.random())}
                unfinished = (rate, rank, seed) == (3e-5, 8, 2)
                make_run(tmp_path / f"{rate}-{rank}" / f"seed-{seed}", e, None if unfinished else metrics)
                if not unfinished:
                    rows.append({"learning_rate": rate, "lora": rank, **metrics})
    return tmp_path, pd.DataFrame(rows)


def test_groups_means_and_deviations_are_those_of_pandas(runs):
    directory, table = runs
    found = training.compare([directory])
    expected = table.groupby(["learning_rate", "lora"]).agg(["mean", "std", "count"])
    expected = expected.sort_values(("accuracy", "mean"), ascending=False)
    assert [(g.settings["learning_rate"], g.settings["lora"]) for g in found.groups] == list(expected.index)
    assert found.metrics == ("accuracy", "loss")
    for group, (_, row) in zip(found.groups, expected.iterrows(), strict=True):
        assert set(group.settings) == {"learning_rate", "lora"}, "neither the seed nor how often it logs"
        for metric in ("accuracy", "loss"):
            assert group.mean(metric) == pytest.approx(row[metric, "mean"])
            assert group.deviation(metric) == pytest.approx(row[metric, "std"])
        assert len(group.runs) == row["accuracy", "count"]
    assert sum(len(group.unfinished) for group in found.groups) == 1


def test_the_command_writes_a_table_and_files(runs, tmp_path):
    directory, table = runs
    printed = stdout_of(["compare", *map(str, sorted(directory.iterdir())), "--output", str(tmp_path / "out.csv")])
    lines = printed.splitlines()
    assert sorted(lines[0].split()) == ["accuracy", "learning_rate", "lora", "loss", "seeds"]
    assert len(lines) == 5
    assert "2 of 3" in printed
    read = pd.read_csv(tmp_path / "out.csv").set_index(["learning_rate", "lora"]).sort_index()
    means = table.groupby(["learning_rate", "lora"]).mean()
    np.testing.assert_allclose(read[["accuracy", "loss"]], means[["accuracy", "loss"]])
    np.testing.assert_allclose(read["accuracy deviation"], table.groupby(["learning_rate", "lora"])["accuracy"].std())

    stdout_of(["compare", str(directory), "--output", str(tmp_path / "out.json")])
    groups = json.loads((tmp_path / "out.json").read_text())["groups"]
    assert sorted(len(group["runs"]) for group in groups) == [2, 3, 3, 3]
    stdout_of(["compare", str(directory), "--output", str(tmp_path / "out.png")])
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_single_run_and_old_records_compare(tmp_path):
    make_run(tmp_path / "a", BASE, {"accuracy": None, "loss": 1.0})
    one = training.compare([tmp_path / "a"])
    assert one.groups[0].settings == {}
    assert one.groups[0].mean("accuracy") == 0.0
    assert one.groups[0].deviation("accuracy") is None
    record = run_record(dataclasses.replace(BASE, seed=1), {})
    del record["experiment"]["sift"]  # as a run of a version that had no such setting
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "experiment.json").write_text(json.dumps(record))
    (tmp_path / "b" / "result.json").write_text(json.dumps({"step": 1, "metrics": {"accuracy": 0.5, "loss": 2.0}}))
    both = training.compare([tmp_path / "a", tmp_path / "b"])
    assert len(both.groups) == 1
    assert both.groups[0].seeds == [0, 1]


def test_wrong_inputs_are_refused(tmp_path, capsys):
    assert "holds no run" in refused(["compare", tmp_path], capsys)
    assert "directories of one or more runs" in refused(["compare"], capsys)
    make_run(tmp_path / "a", BASE, {"accuracy": 1.0, "loss": 1.0})
    assert ".json, .csv or .png" in refused(["compare", tmp_path / "a", "--output", tmp_path / "x.txt"], capsys)
    make_run(tmp_path / "b", training.PretrainMLM(model="m"), {"loss": 1.0})
    assert "runs of one kind" in refused(["compare", tmp_path], capsys)
    (tmp_path / "b" / "result.json").write_text("{")
    with pytest.raises(InputError, match=r"result\.json"):
        training.compare([tmp_path / "b"])


def test_settings_of_a_grid_reach_the_parts_of_an_experiment():
    found = with_settings(BASE, {"learning_rate": 1e-3, "warmup": 5, "mesh_fsdp": 2, "epochs": 7})
    assert (found.optimization.learning_rate, found.optimization.warmup) == (1e-3, 5)
    assert (found.runtime.mesh_fsdp, found.epochs) == (2, 7)
    with pytest.raises(InputError, match="no setting 'learning_rat'; did you mean 'learning_rate'"):
        with_settings(BASE, {"learning_rat": 1})
    for name in ("seed", "seeds", "output"):
        with pytest.raises(InputError, match=f"sweep: '{name}' cannot be in the grid"):
            training.sweep(BASE, {name: [0, 1]})
    with pytest.raises(InputError, match="no value for lora"):
        training.sweep(BASE, {"lora": []})
    assert point_name({"learning_rate": 1e-5, "lora": 8}) == "learning_rate=1e-05,lora=8"
    assert point_name({}) == "all"
    odd = point_name({"freeze": ("a/*", "../b")})
    assert "/" not in odd
    assert odd != point_name({"freeze": ("a/_", "../b")})


@pytest.mark.slow
@pytest.mark.system
def test_a_sweep_runs_every_combination_once_and_grows(task, tmp_path, one_device):
    e = task.experiment(tmp_path / "sweep", max_length=16, epochs=1)
    e = with_settings(e, {"keep_state": 0})
    grid = {"learning_rate": [1e-3, 3e-3]}
    first = training.sweep(e, grid)
    assert first.stopped is None
    assert first.comparison is not None
    assert [len(group.runs) for group in first.comparison.groups] == [1, 1]
    again = training.sweep(e, grid, seeds=2)
    assert again.comparison is not None
    rows = pd.DataFrame(again.comparison.rows())
    assert set(rows["learning_rate"]) == {1e-3, 3e-3}
    assert list(rows["seeds"]) == [2, 2]
    sessions = sorted((tmp_path / "sweep").rglob("sessions.jsonl"))
    assert len(sessions) == 4
    assert all(len(path.read_text().splitlines()) == 1 for path in sessions), "finished runs are not repeated"
    saved = json.load(io.BytesIO((tmp_path / "sweep" / "sweep.json").read_bytes()))
    assert saved == again.comparison.to_json()
    assert not list((tmp_path / "sweep").rglob("state"))
