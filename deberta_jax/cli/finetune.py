"""``deberta-jax finetune``: see ``training.experiment.Finetune`` for every argument."""

import json
import logging
import sys

from deberta_jax.cli.configfile import experiment_arguments
from deberta_jax.training.experiment import Finetune
from deberta_jax.training.finetune import finetune

_log = logging.getLogger(__name__)


def parse(argv: list[str]) -> Finetune:
    return experiment_arguments(Finetune, ["finetune", *argv])


def run(experiment: Finetune) -> None:
    """Trains; prints the best checkpoint's metrics as one JSON object."""
    report(finetune(experiment), experiment.output)


def report(result, output: str) -> None:
    if result.stopped is not None:
        _log.info("stopped by %s after step %d; run the same command to go on", result.stopped.name, result.step)
        sys.exit(128 + result.stopped)
    print(json.dumps({"output": output, "step": result.step, **result.metrics}))
