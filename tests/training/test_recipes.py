"""Where recipes come from, and what is said of a warm-up that is longer than the run."""

import logging
from pathlib import Path

import pytest

from deberta_jax.cli.configfile import load_config_file
from deberta_jax.training import Finetune, Optimization
from deberta_jax.training.dry_run import describe_job
from deberta_jax.training.experiment import run_record
from deberta_jax.training.finetuning import plan_finetune

CONFIGS = Path(__file__).parents[2] / "configs"


# Microsoft's table of development results, of the README beside its code.
@pytest.mark.parametrize(
    ("name", "score", "script"),
    [
        ("mnli.py:v3-base", "accuracy, matched 0.906", "glue/mnli.sh"),
        ("mnli.py:v3-xsmall", "accuracy, matched 0.881", "glue/mnli.sh"),
        ("cola.py:v3-large", "Matthews correlation 0.753", "glue/cola.sh"),
        ("stsb.py:v3-large", "Pearson correlation 0.930", "glue/stsb.sh"),
        ("rte.py:base", "", "glue/rte.sh"),
        ("conll2003.py:v3-large", "", "ner/ner.sh"),
    ],
)
def test_a_recipe_names_its_source_and_the_published_score(name, score, script):
    found = load_config_file(str(CONFIGS / name), Finetune)
    assert found.published_score == score
    assert found.recipe == f"{name.partition(':')[2]}: experiments/{script} of microsoft/DeBERTa"
    record = run_record(found, {})
    assert not {"recipe", "published_score"} & record["experiment"].keys(), "runs of older versions go on"


@pytest.mark.parametrize(("warmup", "said"), [(23, False), (24, True), (0.9, False)])
def test_a_warm_up_as_long_as_the_run_is_said(task, tmp_path, one_device, caplog, warmup, said):
    optimization = Optimization(warmup=warmup)
    e = task.experiment(tmp_path / "run", max_length=16, epochs=4, batch_size=16, optimization=optimization)
    with caplog.at_level(logging.WARNING, logger="deberta_jax"):
        describe_job(plan_finetune(e)[1], compiled=False)
    assert ("only rises" in caplog.text) == said
