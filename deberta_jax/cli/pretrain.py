"""``deberta-jax pretrain mlm|rtd``: see ``training.experiment.PretrainMLM`` and ``PretrainRTD`` for every argument."""

import json
import sys

from deberta_jax.cli.configfile import experiment_arguments
from deberta_jax.cli.finetune import report
from deberta_jax.cli.planned import starts_after_plan
from deberta_jax.errors import InputError
from deberta_jax.training.dry_run import describe
from deberta_jax.training.experiment import PretrainMLM, PretrainRTD
from deberta_jax.training.loop import Job
from deberta_jax.training.pretrain import begin, mlm_job, pretrain_mlm, pretrain_rtd, rtd_job

KINDS = {"mlm": PretrainMLM, "rtd": PretrainRTD}


def parse(argv: list[str]) -> PretrainMLM | PretrainRTD:
    if argv[:1] in (["-h"], ["--help"]):
        print("usage: deberta-jax pretrain mlm|rtd ...; `deberta-jax pretrain mlm --help` tells its arguments")
        sys.exit(0)
    if not argv or argv[0] not in KINDS:
        raise InputError(
            "pretrain: say what by: `pretrain mlm ...` (masked language model) or `pretrain rtd ...` "
            "(replaced-token detection); each has --help"
        )
    return experiment_arguments(KINDS[argv[0]], [f"pretrain {argv[0]}", *argv[1:]])


def run(experiment: PretrainMLM | PretrainRTD) -> None:
    """Trains; prints the metrics on the held-out text as one JSON object."""
    e = experiment
    if not starts_after_plan(e):
        return
    if e.runtime.dry_run:
        record, directory = begin(e)
        job: Job = mlm_job(e, record, directory) if isinstance(e, PretrainMLM) else rtd_job(e, record, directory)
        print(json.dumps(describe(job)))
    else:
        report(pretrain_mlm(e) if isinstance(e, PretrainMLM) else pretrain_rtd(e), e.output)
