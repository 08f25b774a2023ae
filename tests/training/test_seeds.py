"""Median and spread over seeds, seeds that learned nothing, and what a dry run prints and does not write."""

import json
import statistics

import pytest

from deberta_jax.training.seeds import has_collapsed, spread
from tests.made import MAX_LENGTH, TINY, stdout_of


def test_median_and_spread():
    values = {"0": 0.5, "1": 0.9, "2": 0.7, "3": None, "4": 0.8}
    found = spread(values)
    numbers = [0.5, 0.9, 0.7, 0.0, 0.8]
    assert found["median"] == 0.7
    assert found["deviation"] == pytest.approx(statistics.stdev(numbers))
    assert (found["lowest"], found["highest"], found["best"]) == (0.0, 0.9, "1")
    assert found["by_seed"] == values
    assert spread({"3": 0.5}, lowest_is_best=True)["deviation"] == 0.0
    assert spread({"3": 0.5, "4": 0.4}, lowest_is_best=True)["best"] == "4"


def test_a_seed_that_always_says_the_same_has_collapsed():
    assert has_collapsed({"accuracy": 0.5}, {"confusion": [[0, 9], [0, 8]]})
    assert not has_collapsed({"accuracy": 0.6}, {"confusion": [[1, 8], [0, 8]]})
    assert has_collapsed({"pearson": None}, {"scatter": [[], []]})
    assert not has_collapsed({"pearson": 0.1}, {"scatter": [[], []]})


def test_a_dry_run_describes_the_run_and_writes_nothing(task, tmp_path, capsys):
    config = tmp_path / "mine.py"
    config.write_text(
        "from deberta_jax.training import Finetune\n"
        "def get_config():\n"
        "    return Finetune(recipe='page 5 of the report', published_score='accuracy 0.9')\n"
    )
    more = ("--dry-run", "--lora", "2", "--config", str(config), "--warmup", "500")
    out = json.loads(stdout_of([*task.arguments(tmp_path / "run"), *more]))
    assert not (tmp_path / "run").exists()
    assert (out["task"], out["text"], out["label"], out["metric"]) == (
        "text-classification",
        ["sentence"],
        "kind",
        "accuracy",
    )
    assert out["labels_of_model"] == ["neg", "pos"]
    assert (out["learning_rate"], out["schedule"], out["warmup_steps"], out["steps"]) == (3e-3, "linear", 500, 24)
    assert (out["recipe"], out["published_score"]) == ("page 5 of the report", "accuracy 0.9")
    said = (
        "--warmup 500: the warm-up has 500 steps and the run 24, so the learning rate only rises, to 0.000138 of 0.003"
    )
    assert said in capsys.readouterr().err
    assert out["examples_per_step"] == 16
    assert all(rows % 8 == 0 and length >= MAX_LENGTH for rows, length in out["programs"])
    # Two kernels of two layers, each [32, 2] and [2, 32]; pooler and classifier whole.
    updates = 2 * TINY.num_hidden_layers * 2 * 2 * 32
    head = 32 * 32 + 32 + 32 * 2 + 2
    assert out["trained_parameters"] == updates + head
    assert out["parameters"] > TINY.vocab_size * 32
    # Parameters in float32, two moments of what is trained, the step, the rng, and the optimizer's counts.
    assert out["state_bytes_per_device"] == pytest.approx(4 * out["parameters"] + 8 * out["trained_parameters"], abs=64)
