"""``deberta-jax finetune``: see ``training.experiment.Finetune`` for every argument."""

import json
import logging
import sys
from pathlib import Path

from deberta_jax.cli.configfile import experiment_arguments
from deberta_jax.cli.planned import starts_after_plan
from deberta_jax.training.directory import Result
from deberta_jax.training.distributed import is_writer
from deberta_jax.training.dry_run import describe
from deberta_jax.training.experiment import Finetune
from deberta_jax.training.finetune import finetune, plan_finetune
from deberta_jax.training.seeds import finetune_seeds

_log = logging.getLogger(__name__)


def parse(argv: list[str]) -> Finetune:
    return experiment_arguments(Finetune, ["finetune", *argv])


def run(experiment: Finetune) -> None:
    """Trains; prints the best checkpoint's metrics as one JSON object."""
    if not starts_after_plan(experiment):
        return
    if experiment.runtime.dry_run:
        e, job = plan_finetune(experiment)
        guessed = {name: getattr(e, name) for name in ("task", "text", "label", "labels", "choices")}
        print(
            json.dumps(
                {**guessed, "metric": job.metric, "labels_of_model": job.objective.configs[0].id2label, **describe(job)}
            )
        )
    elif experiment.seeds > 1:
        summary = finetune_seeds(experiment)
        if summary["stopped"] is not None:
            _stop(experiment.output, summary["stopped"], None)
        if is_writer():
            print(json.dumps({"output": experiment.output, **{k: v for k, v in summary.items() if k != "stopped"}}))
    else:
        report(finetune(experiment), experiment.output)


def report(result: Result, output: str) -> None:
    if result.stopped is not None:
        _stop(output, result.stopped, result.step)
    if is_writer():
        print(json.dumps({"output": output, "step": result.step, **result.metrics}))


def _stop(output: str, signal, step: int | None) -> None:
    if is_writer():
        after = "" if step is None else f" after step {step}"
        _log.info("%s: stopped by %s%s; run the same command to go on", Path(output), signal.name, after)
    sys.exit(128 + signal)
