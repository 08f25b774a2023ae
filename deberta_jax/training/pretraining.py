"""Runs pre-training: turns an experiment and its text into the run's job."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from deberta_jax import storage
from deberta_jax.data.shards import manifest_of
from deberta_jax.text.mlm_masking import Masking
from deberta_jax.training.directory import Result
from deberta_jax.training.distributed import start
from deberta_jax.training.experiment import Pretraining, PretrainMLM, PretrainRTD, require, run_record
from deberta_jax.training.language_metrics import masked_lm_evaluation, replaced_token_evaluation
from deberta_jax.training.loop import Job, run_job
from deberta_jax.training.objective import Objective
from deberta_jax.training.pretrain_data import PretrainData, read_pretrain_data
from deberta_jax.training.pretrain_objectives import masked_lm_config, mlm_objective, rtd_configs, rtd_objective
from deberta_jax.training.process_options import mesh_of
from deberta_jax.training.resolve import resolve_tokenizer
from deberta_jax.weights import save_pretrained


def pretrain(experiment: PretrainMLM | PretrainRTD) -> Result:
    """Starts a pre-training, or continues it.

    For masked LM ``experiment.output`` becomes the model directory of the best checkpoint. For replaced-token
    detection ``generator`` and ``discriminator`` below it become model directories, at every evaluation those of the
    latest parameters.

    Returns:
      The result, with the metrics of ``language_metrics.masked_lm_evaluation`` or ``replaced_token_evaluation`` on the
      held-out text.

    Raises:
      InputError: files, models or output directory that cannot be used; nothing is written then.
      FloatingPointError: the run diverged.
    """
    e = experiment
    record, directory = begin(e)
    return run_job(directory, record, lambda: make_job(e, record, directory))


def plan_pretrain(experiment: PretrainMLM | PretrainRTD) -> Job:
    """Returns the job of a pre-training without running it. Raises InputError as ``pretrain``."""
    record, directory = begin(experiment)
    return make_job(experiment, record, directory)


def make_job(e: PretrainMLM | PretrainRTD, record: dict[str, Any], directory: storage.AnyPath) -> Job:
    """Returns the job with everything up to its first step; writes nothing."""
    return mlm_job(e, record, directory) if isinstance(e, PretrainMLM) else rtd_job(e, record, directory)


def begin(e: Pretraining) -> tuple[dict[str, Any], storage.AnyPath]:
    """Checks an experiment and joins its processes. Returns its record and its directory."""
    require(e, "model", "train", "eval", "output")
    start(e.runtime)
    # A prepared directory stands for its manifest, which has the digests of all its files.
    file_of = lambda path: str(manifest_of(Path(path))) if Path(path).is_dir() else path
    record = run_record(e, {path: file_of(path) for path in (*e.train, e.eval)})
    return record, storage.output_directory("--output", e.output)


def mlm_job(e: PretrainMLM, record: dict[str, Any], directory: storage.AnyPath) -> Job:
    """Returns the job of a masked-LM pre-training."""
    config = masked_lm_config(e)
    mesh = mesh_of(e.runtime)
    data = read_pretrain_data(e, resolve_tokenizer(e), config.vocab_size, mesh, masking_of(e, e.shown))
    model, objective = mlm_objective(e, config)
    save = lambda params: save_pretrained(directory, model, params, data.tokenizer, overwrite=True)
    return language_job(
        e, record, directory, data, objective, masked_lm_evaluation(model, data, mesh), metric="loss", save=save
    )


def rtd_job(e: PretrainRTD, record: dict[str, Any], directory: storage.AnyPath) -> Job:
    """Returns the job of a pre-training by replaced-token detection."""
    generator, discriminator = rtd_configs(e)
    mesh = mesh_of(e.runtime)
    data = read_pretrain_data(e, resolve_tokenizer(e), discriminator.vocab_size, mesh, masking_of(e, "mask"))
    models, objective = rtd_objective(e, generator, discriminator)

    def save(params):
        params = {"generator": params["generator"], "discriminator": models.discriminator_params(params)}
        for name, model in (("generator", models.generator), ("discriminator", models.discriminator)):
            save_pretrained(directory / name, model, params[name], data.tokenizer, overwrite=True)

    evaluate = replaced_token_evaluation(models, e.discriminator_weight, data, mesh)
    # The discriminator's task grows harder as the generator learns, so no metric shows the best parameters: the latest
    # are saved.
    return language_job(e, record, directory, data, objective, evaluate, metric=None, save=save)


def masking_of(e: Pretraining, shown: Literal["80-10-10", "mask"]) -> Masking:
    """Returns how the experiment masks tokens."""
    return Masking(
        probability=e.mask_share, unit=e.mask_unit, longest_span=e.longest_span, shown=shown, skip_tail=e.skip_tail
    )


def language_job(
    e: Pretraining,
    record: dict[str, Any],
    directory: storage.AnyPath,
    data: PretrainData,
    objective: Objective,
    evaluate: Any,
    *,
    metric: str | None,
    save: Callable[[Any], None],
) -> Job:
    """Returns a pre-training's job, which also evaluates before the first step."""
    return Job(
        directory=directory,
        record=record,
        objective=objective,
        mesh=mesh_of(e.runtime),
        runtime=e.runtime,
        seed=e.seed,
        batches=data.train,
        evaluate=evaluate,
        metric=metric,
        save_best=save,
        eval_every=e.eval_every,
        evaluate_first=True,
    )
