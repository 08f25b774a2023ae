"""``deberta-jax finetune``: ``training.experiment.Finetune`` has every argument."""

from deberta_jax.cli.configfile import experiment_arguments
from deberta_jax.cli.output import exit_stopped, json_text, print_json, print_result
from deberta_jax.planning.runs import starts_after_plan
from deberta_jax.training.dry_run import describe_finetune
from deberta_jax.training.experiment import Finetune
from deberta_jax.training.finetuning import finetune
from deberta_jax.training.seeds import finetune_seeds


def parse(argv: list[str]) -> Finetune:
    """Returns the experiment that the arguments and a ``--config`` file describe."""
    return experiment_arguments(Finetune, ["finetune", *argv])


def run(experiment: Finetune) -> None:
    """Trains, and prints the best checkpoint's metrics; or prints what the run would be."""
    if not starts_after_plan(experiment):
        return
    if experiment.runtime.dry_run:
        print(json_text(describe_finetune(experiment)))
    elif experiment.seeds > 1:
        summary = finetune_seeds(experiment)
        stopped = summary.pop("stopped")
        if stopped is not None:
            exit_stopped(experiment, stopped)
        print_json({"output": experiment.output, **summary})
    else:
        print_result(finetune(experiment), experiment)
