"""Fine-tunes a model on a task of any kind: makes the run's ``Job`` from files and a model directory, and runs it."""

import logging
from typing import Any

import numpy as np

from deberta_jax import storage
from deberta_jax.inference.predict import Predictor
from deberta_jax.progress import progress_bar
from deberta_jax.training.directory import Result
from deberta_jax.training.distributed import is_writer
from deberta_jax.training.experiment import Finetune
from deberta_jax.training.finetune_data import features_of, read_inputs
from deberta_jax.training.finetune_model import finetune_objective
from deberta_jax.training.finite import ADVICE, finite_json
from deberta_jax.training.loop import Job, run_job
from deberta_jax.training.peft import save_adapter
from deberta_jax.training.resolve import ResolvedExperiment, resolve_experiment
from deberta_jax.weights import save_pretrained

_log = logging.getLogger(__name__)


def finetune(experiment: Finetune) -> Result:
    """Starts a fine-tuning, or continues it; the best checkpoint becomes the model directory ``experiment.output``.

    For example ``finetune(Finetune(model="DIR", train="train.csv", eval="dev.csv", output="runs/mine"))``. Task and
    columns that are not given are guessed from the files, and the guesses logged. All devices are used, as
    ``experiment.runtime`` says. ``describe_finetune`` shows what a run would be.

    Args:
      experiment: the settings; ``deberta-jax finetune --help`` describes each.

    Returns:
      The step and the metrics of the best checkpoint; of a run that has finished before, without running it again. If
      SIGTERM or SIGINT ended the run early, ``stopped`` is the signal, and the same call goes on from the last state.

    Raises:
      InputError: files, columns, labels, model or output directory cannot be used. Nothing is written then.
      FloatingPointError: the run has diverged.
    """
    resolved = resolve_experiment(experiment)
    directory = storage.output_directory("--output", experiment.output)
    return run_job(directory, resolved.record, lambda: make_job(resolved, directory))


def plan_finetune(experiment: Finetune) -> tuple[Finetune, Job]:
    """Returns the resolved experiment and its job without running it. Raises InputError as ``finetune``."""
    resolved = resolve_experiment(experiment)
    directory = storage.output_directory("--output", experiment.output)
    return resolved.experiment, make_job(resolved, directory)


def make_job(resolved: ResolvedExperiment, directory: storage.AnyPath) -> Job:
    """Returns a job that is ready for its first step. Writes only the cache of tokens."""
    e, held_out, inputs = resolved.experiment, resolved.held_out, read_inputs(resolved)
    task, tokenizer, mesh, batches = inputs.task, inputs.tokenizer, inputs.mesh, inputs.batches
    evaluated = features_of(resolved, task, tokenizer, held_out, inputs.config)
    trained, objective = finetune_objective(e, inputs.config, task)
    predictor = Predictor(trained.model, tokenizer.pad_id, max_length=e.max_length, batch_size=e.batch_size, mesh=mesh)
    details: dict[str, Any] = {}
    if trained.lora is not None and e.distillation.student_layers:
        _log.info(
            "no adapter for peft: its base would be the student's layers of %s; the merged model is written", e.model
        )

    metric = e.metric or task.metric

    def evaluate(params, tick):
        total = len(evaluated.lengths)
        with progress_bar(total=total, desc="evaluating", leave=False, disable=not is_writer()) as bar:

            def progress(done: int) -> None:
                tick()
                bar.update(done)

            logits = predictor.logits(trained.effective(params), evaluated, progress)
        if not np.isfinite(logits).all():
            raise FloatingPointError(f"the scores of the evaluation are not finite: {ADVICE}")
        details.update(task.details(logits, evaluated, held_out))
        metrics = task.metrics(logits, evaluated, held_out)
        return {metric: metrics[metric], **metrics}  # comparisons of runs and seeds read the first one

    def save_best(params):
        # QLoRA's kernels are sums of quantized and of other numbers, so the model is written in float.
        save_pretrained(directory, trained.model, trained.effective(params), tokenizer, overwrite=True, dequantize=True)
        if trained.lora is not None and not e.distillation.student_layers:
            save_adapter(directory / "adapter", trained.model, trained.trainable(params), trained.lora, e.model)
        if is_writer():
            storage.write_json(directory / "evaluation.json", finite_json(details))

    return Job(
        directory=directory,
        record=resolved.record,
        objective=objective,
        mesh=mesh,
        runtime=e.runtime,
        seed=e.seed,
        batches=batches,
        evaluate=evaluate,
        metric=metric,
        save_best=save_best,
        eval_every=batches.steps_per_epoch,
    )
