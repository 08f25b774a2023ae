"""The loop: programs compiled once, the log through interruptions, divergence, the best, and the run's directory."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import InputError
from deberta_jax.data.batches import ExampleOrder, Size, TrainingBatches, length_buckets
from deberta_jax.data.features import make_features
from deberta_jax.storage import write_json
from deberta_jax.text import load_tokenizer
from deberta_jax.training.directory import check_directory
from deberta_jax.training.experiment import Finetune, Optimization, PretrainMLM, RunOptions, difference, run_record
from deberta_jax.training.finetuning import finetune
from deberta_jax.training.logging import RunLog
from deberta_jax.training.loop import _better
from tests.made import LABELS, log_of, text_of, write_table


def experiment_of(task, output, **more) -> Finetune:
    return Finetune(
        **{
            "model": str(task.blank),
            "from_scratch": True,
            "train": str(task.home / "train.csv"),
            "eval": str(task.home / "eval.csv"),
            "text": ("sentence",),
            "label": "kind",
            "output": str(output),
            "max_length": 16,
            "batch_size": 16,
            "epochs": 1,
            **more,
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("max_length", [32, pytest.param(512, marks=pytest.mark.long)])
@pytest.mark.parametrize("batching", ["packed", "buckets"])
def test_lengths_of_all_sorts_are_the_announced_programs_and_no_more(
    task, tmp_path, one_device, caplog, batching, max_length
):
    """By jax's own account of what it compiles."""
    rng = np.random.default_rng(3)
    rows = [(text_of(LABELS[i % 2], rng, 1, max_length // 2 - 2), LABELS[i % 2]) for i in range(90)]
    train = write_table(tmp_path / "train.csv", ("sentence", "kind"), rows)
    features = make_features(load_tokenizer(task.blank), [text for text, _ in rows], None, max_length=max_length)
    assert len(set(features.lengths)) > 10
    assert max(features.lengths) > 0.9 * max_length
    buckets = length_buckets(features.lengths, max_length) if batching == "buckets" else ()
    announced = list(
        TrainingBatches(features, ExampleOrder(batch_size=4, seed=0, epochs=1), 0, buckets=buckets).examples()
    )
    assert len(announced) >= 2
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        finetune(
            experiment_of(
                task,
                tmp_path / "run",
                train=str(train),
                batch_size=4,
                max_length=max_length,
                batching=batching,
                runtime=RunOptions(attention="xla"),
            )
        )
    told = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("Compiling jit(step)") for line in told) == len(announced)
    (session,) = (tmp_path / "run" / "sessions.jsonl").read_text().splitlines()
    assert json.loads(session)["programs"] == len(announced)


@pytest.mark.slow
def test_a_run_that_diverges_ends_with_an_error_and_saves_no_such_state(task, tmp_path, one_device):
    experiment = experiment_of(task, tmp_path / "run", epochs=3, optimization=Optimization(learning_rate=1e30))
    with pytest.raises(FloatingPointError, match=r"has diverged; lower --learning-rate .* the batch is in ") as raised:
        finetune(experiment)
    (kept,) = (tmp_path / "run").glob("not_finite_step_*.npz")
    assert str(kept) in str(raised.value)
    batch = np.load(kept)
    assert batch["input_ids"].shape == batch["segment_ids"].shape
    assert (batch["labels"] >= 0).any()
    assert not (tmp_path / "run" / "result.json").exists()
    # Evaluations and log lines come before the divergence is due in the log, and are none the less of finite numbers.
    assert "NaN" not in (tmp_path / "run" / "log.jsonl").read_text()
    assert all(np.isfinite(entry["eval"]["loss"]) for entry in log_of(tmp_path / "run") if "eval" in entry)


SIZE = Size(examples=1, tokens=3, token_slots=4)


def measured(value):
    return {"loss": jnp.float32(value), "gradient_norm": jnp.float32(1)}


def test_lines_are_means_since_the_line_before_through_evaluations_and_interruptions(tmp_path):
    losses = np.random.default_rng(0).random(20).astype(np.float32)

    def write(directory, stops):
        directory.mkdir()
        log, start, pending, evaluated = None, 0, [], -1
        for stop in (*stops, 20):
            log = RunLog(directory, 20, 6, lambda step: 0.1 * step, start=start, evaluated=evaluated, pending=pending)
            for step in range(start + 1, stop + 1):
                log.step(step, measured(losses[step - 1]), SIZE)
                if step == 10:
                    log.evaluation(step, {"loss": 1.0, "accuracy": 0.5})
                    log.restart_clock()
                    evaluated = step
            start, pending = stop, json.loads(json.dumps(log.unwritten(stop)))
            # Steps beyond the saved state, of a process that was killed: they come again.
            for step in range(stop + 1, min(stop + 4, 20)):
                log.step(step, measured(losses[step - 1]), SIZE)
            log.close()
        return log_of(directory)

    whole = write(tmp_path / "whole", ())
    steps = [entry for entry in whole if "loss" in entry]
    assert [entry["step"] for entry in steps] == [6, 12, 18, 20]
    for entry, (a, b) in zip(steps, ((0, 6), (6, 12), (12, 18), (18, 20)), strict=True):
        assert entry["loss"] == pytest.approx(losses[a:b].mean(), rel=1e-6)
        assert entry["learning_rate"] == pytest.approx(0.1 * (b - 1))
    for i, stops in enumerate(((1,), (6,), (10,), (11, 13), (5, 7, 12, 19))):
        assert write(tmp_path / str(i), stops) == whole


def test_an_evaluation_that_comes_again_is_written_once(tmp_path):
    log = RunLog(tmp_path, 8, 4, lambda step: 0.0)
    for step in range(1, 5):
        log.step(step, measured(0.5), SIZE)
    log.evaluation(4, {"loss": 1.0})
    log.close()
    for evaluated, expected in ((4, [1, 1]), (-1, [1, 0])):
        log = RunLog(tmp_path, 8, 4, lambda step: 0.0, start=4, evaluated=evaluated)
        log.close()
        entries = log_of(tmp_path)
        assert [sum("loss" in e for e in entries), sum("eval" in e for e in entries)] == expected


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 2, "loss": 1.0}\n{"step": 4, "lo')
    RunLog(tmp_path, 8, 2, lambda step: 0.0, start=4, evaluated=-1).close()
    assert log_of(tmp_path) == [{"step": 2, "loss": 1.0}]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_neither_written_nor_saved(tmp_path, value):
    log = RunLog(tmp_path, 9, 5, lambda step: 0.0)
    log.step(1, measured(0.5), SIZE)
    assert log.unwritten(1) == [{"loss": 0.5, "gradient_norm": 1.0, "padding": 0.25}]
    log.step(2, measured(value), SIZE)
    with pytest.raises(FloatingPointError, match="by step 2: the run has diverged"):
        log.unwritten(2)
    log.close()
    assert log_of(tmp_path) == []


def test_the_best_is_the_highest_or_of_the_loss_the_lowest_and_the_first_of_equals():
    assert _better("accuracy", {"accuracy": 0.5}, None)
    assert _better("accuracy", {"accuracy": 0.6}, {"accuracy": 0.5})
    assert not _better("accuracy", {"accuracy": 0.5}, {"accuracy": 0.5})
    assert _better("loss", {"loss": 0.4}, {"loss": 0.5})
    assert not _better("loss", {"loss": 0.5}, {"loss": 0.4})
    assert _better("pearson", {"pearson": -0.5}, {"pearson": None})
    assert not _better("pearson", {"pearson": None}, {"pearson": -0.5})


def test_a_directory_is_free_goes_on_has_finished_or_is_refused(tmp_path):
    runtime = {"log_every": 3, "resume": "auto"}
    record = {"job": "Finetune", "experiment": {"seed": 0}, "data": {"a.csv": "00"}, "runtime": runtime}
    run = tmp_path / "deep" / "run"
    assert check_directory(run, record) is None
    run.mkdir(parents=True)
    assert check_directory(run, record) is None
    (run / ".experiment.json.partial-0a1b2c3d").write_text("{")  # killed at the very start
    assert check_directory(run, record) is None
    write_json(run / "experiment.json", record)
    assert check_directory(run, record | {"runtime": {**runtime, "log_every": 9}}) is None, (
        "how it is computed may change"
    )
    # Records of runs that began when the implementation 'xla' was called 'shift'.
    write_json(run / "experiment.json", record | {"runtime": {**runtime, "attention": "shift"}})
    assert check_directory(run, record | {"runtime": {**runtime, "attention": "xla"}}) is None
    for change, words in (
        ({"experiment": {"seed": 1}}, "its seed is 0, now it is 1"),
        ({"data": {"a.csv": "11"}}, "the data file a.csv has changed"),
        ({"job": "PretrainMLM"}, "it is a Finetune run"),
    ):
        with pytest.raises(InputError, match=f"holds another run .{words}"):
            check_directory(run, record | change)
    with pytest.raises(InputError, match="holds this run already and --resume is never"):
        check_directory(run, record | {"runtime": {"resume": "never"}})
    write_json(run / "result.json", {"step": 7, "metrics": {"loss": 0.5}})
    for name in ("config.json", "model.safetensors"):
        (run / name).touch()
    found = check_directory(run, record)
    assert (found.step, found.metrics, found.stopped) == (7, {"loss": 0.5}, None)


def test_two_experiments_are_one_run_if_all_but_the_runtime_is_equal(tmp_path):
    data = tmp_path / "a.csv"
    data.write_text("text,label\n")
    first = run_record(Finetune(output="x"), {"train": str(data)})
    assert difference(first, json.loads(json.dumps(first))) is None
    assert difference(run_record(Finetune(output="y"), {"train": str(data)}), first) is None
    changed = run_record(Finetune(optimization=Optimization(beta1=0.8)), {"train": str(data)})
    assert difference(changed, first) == "its optimization.beta1 is 0.9, now it is 0.8"
    data.write_text("text,label\na,b\n")
    assert difference(run_record(Finetune(), {"train": str(data)}), first) == f"the data file {data} has changed"
    assert difference(run_record(PretrainMLM(), {"train": str(data)}), first) == "it is a Finetune run"
