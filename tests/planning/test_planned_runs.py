"""``--plan`` of a run about to start: it goes on as if it had not been planned, or is refused with the numbers."""

import importlib.util
import json
import re

import pytest
from safetensors.numpy import load_file

from deberta_jax.cli import finetune as command
from deberta_jax.cli.main import main
from deberta_jax.planning import runs
from deberta_jax.planning.request import shapes
from deberta_jax.training import finetuning
from deberta_jax.training.experiment import PretrainMLM, PretrainRTD
from deberta_jax.training.pretraining import plan_pretrain
from tests.made import stdout_of

FEW = 64 << 10


@pytest.mark.slow
@pytest.mark.system
def test_a_planned_run_ends_as_the_same_run_without_a_plan(task, tmp_path, capsys):
    ends = []
    for name, more in (("planned", ["--plan", "here"]), ("plain", [])):
        printed = json.loads(stdout_of(task.arguments(tmp_path / name, "--epochs", "1", *more)))
        del printed["output"]
        ends.append((printed, load_file(tmp_path / name / "model.safetensors")))
    (metrics, weights), (expected, wanted) = ends
    assert metrics == expected
    assert weights.keys() == wanted.keys()
    assert all((weights[name] == wanted[name]).all() for name in wanted)
    assert capsys.readouterr().err.count("guessed --task") == 2, "once a run"


@pytest.mark.slow
def test_a_run_that_cannot_fit_is_refused_before_it_writes(task, tmp_path, capsys, monkeypatch):
    # The machine's memory is all that is not real here.
    monkeypatch.setattr(runs.os, "sysconf", lambda name: 1 if name == "SC_PAGE_SIZE" else 8 * FEW)
    with pytest.raises(SystemExit) as ended:
        main(task.arguments(tmp_path / "run", "--plan", "here"))
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("error: --plan here: a device would need ")
    causes = r"\(parameters [\d.]+ kB, optimizer [\d.]+ kB, batch [\d.]+ \w+, .*\)"
    assert re.search(rf"{causes} and has 65.5 kB; share parameters with --mesh-fsdp", last)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "begins", "told"),
    [
        (["--plan", "v5e:3x5"], "--plan v5e:3x5: ", "there is no such slice"),
        (["--plan", "there"], "--plan there: ", "cpu:8, or here"),
        (
            ["--plan", "cpu:4", "--mesh-fsdp", "3"],
            "--mesh-data 1 --mesh-fsdp 3 --mesh-tensor 1: is 3 chips",
            "give for example --mesh-fsdp 4 or --mesh-data 4",
        ),
        (
            ["--plan", "cpu:8", "--mesh-tensor", "8"],
            "--mesh-tensor 8: does not divide the model's attention heads of 4",
            "give --mesh-tensor 4",
        ),
    ],
)
def test_errors_name_the_flag_that_was_typed(arguments, begins, told, task, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(task.arguments(tmp_path / "run", *arguments))
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {begins}")
    assert told in last


def test_a_batch_of_text_that_the_slice_does_not_divide_is_refused(task, tmp_path, capsys):
    """As the run there would refuse it."""
    (tmp_path / "text.txt").write_text("ba ko ri mu te sa lo ni\n" * 400)
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "pretrain",
                "mlm",
                "--model",
                str(task.blank),
                "--from-scratch",
                "--train",
                str(tmp_path / "text.txt"),
                "--eval",
                str(tmp_path / "text.txt"),
                "--output",
                str(tmp_path / "run"),
                "--max-length",
                "16",
                "--batch-size",
                "8",
                "--plan",
                "cpu:16",
            ]
        )
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: --batch-size 8: is not a multiple of the 16 parts")
    assert last.endswith("give --batch-size 16")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_a_slice_without_its_compiler_names_the_flag_too(task, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(task.arguments(tmp_path / "run", "--plan", "v5e:2x2"))
    assert "error: --plan v5e:2x2: needs the TPU's compiler" in capsys.readouterr().err


@pytest.mark.slow
def test_a_plan_for_elsewhere_starts_nothing(task, tmp_path, capsys):
    main(task.arguments(tmp_path / "run", "--plan", "cpu:4"))
    out, err = capsys.readouterr()
    assert "memory a chip" in out + err
    assert not (tmp_path / "run").exists()


def test_planning_builds_no_job(task, tmp_path, monkeypatch):
    """A plan needs the shapes of batches and the number of steps; weights and the held-out table are not touched."""
    monkeypatch.setattr(finetuning, "make_job", None)
    e = command.parse(task.arguments(tmp_path / "run")[1:])
    shape = runs.shape_of_run(e)
    monkeypatch.undo()
    _, job = finetuning.plan_finetune(e)
    assert shape.steps == len(job.batches)
    assert shape.batch in [shapes(example) for example in job.batches.examples()]
    assert shape.config.num_hidden_layers == job.objective.configs[0].num_hidden_layers


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (PretrainMLM, {"layout": "contiguous"}),
        (PretrainMLM, {"mask_unit": "word", "longest_span": 3}),
        (PretrainRTD, {"skip_tail": True}),
    ],
)
def test_a_pretraining_is_planned_for_the_batches_that_it_reads(kind, options, task, tmp_path):
    """The shapes follow from the options alone; what the run reads and masks has the same."""
    (tmp_path / "text.txt").write_text("ba ko ri mu te sa lo ni\n" * 400)
    text = str(tmp_path / "text.txt")
    e = kind(
        model=str(task.blank),
        from_scratch=True,
        train=(text,),
        eval=text,
        output=str(tmp_path / "run"),
        steps=7,
        batch_size=8,
        max_length=32,
        **options,
    )
    shape = runs.shape_of_run(e)
    job = plan_pretrain(e)
    assert shape.batch == shapes(job.batches[0])
    assert shape.steps == len(job.batches) == 7
    assert shape.config == job.objective.configs[-1]
