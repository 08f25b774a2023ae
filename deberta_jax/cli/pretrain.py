"""``deberta-jax pretrain mlm|rtd``: ``training.experiment.PretrainMLM`` and ``PretrainRTD`` have every argument."""

import sys

from deberta_jax.cli.configfile import experiment_arguments
from deberta_jax.cli.output import json_text, print_result
from deberta_jax.errors import InputError
from deberta_jax.planning.runs import starts_after_plan
from deberta_jax.training.dry_run import describe_job
from deberta_jax.training.experiment import PretrainMLM, PretrainRTD
from deberta_jax.training.pretraining import plan_pretrain, pretrain

KINDS = {"mlm": PretrainMLM, "rtd": PretrainRTD}


def parse(argv: list[str]) -> PretrainMLM | PretrainRTD:
    """Returns the experiment that the arguments and a ``--config`` file describe; the first argument is its kind."""
    if argv[:1] in (["-h"], ["--help"]):
        print("usage: deberta-jax pretrain mlm|rtd ...; `deberta-jax pretrain mlm --help` lists its arguments")
        sys.exit(0)
    if not argv or argv[0] not in KINDS:
        raise InputError(
            "pretrain: say what by: `pretrain mlm ...` (masked language model) or `pretrain rtd ...` "
            "(replaced-token detection); each has --help"
        )
    return experiment_arguments(KINDS[argv[0]], [f"pretrain {argv[0]}", *argv[1:]])


def run(experiment: PretrainMLM | PretrainRTD) -> None:
    """Trains, and prints the metrics on the held-out text; or prints what the run would be."""
    if not starts_after_plan(experiment):
        return
    if experiment.runtime.dry_run:
        print(json_text(describe_job(plan_pretrain(experiment))))
    else:
        print_result(pretrain(experiment), experiment)
