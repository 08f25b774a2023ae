"""Fine-tuning on a task of any kind: from files and a model directory to the run's Job."""

import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from deberta_jax import storage
from deberta_jax.config import DebertaConfig
from deberta_jax.data.batches import Order, TrainingBatches, example_lengths, length_buckets
from deberta_jax.data.cache import cached_features
from deberta_jax.data.features import Features, check_vocabulary, log_cut
from deberta_jax.data.labels import LabelIds
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError, listed
from deberta_jax.inference.predict import Predictor, model_inputs
from deberta_jax.models import Model, head_spec, init_params, redraw_layers
from deberta_jax.models.embeddings import check_length
from deberta_jax.sharding import row_share
from deberta_jax.tasks import NAMED_TASKS, Task, find_file, read_task, resolve_options, resolve_task, without_unlabelled
from deberta_jax.text import Tokenizer, load_tokenizer
from deberta_jax.training.directory import Result
from deberta_jax.training.distributed import is_writer, start, wait_for_all
from deberta_jax.training.experiment import Finetune, model_runtime, require, resolved
from deberta_jax.training.loop import Job, mesh_of, run_job
from deberta_jax.training.lora import Lora, find_kernels, init_lora, lora_parameters, merge
from deberta_jax.training.objective import Objective
from deberta_jax.training.optimizers import frozen_paths
from deberta_jax.training.peft import save_adapter
from deberta_jax.training.resolve import resolve_config, resolve_tokenizer
from deberta_jax.training.sift import Sift, check_sift, normalized_words, sift_terms
from deberta_jax.training.state import Parameters, parameters_of
from deberta_jax.training.step import Loss
from deberta_jax.weights import load, save_pretrained

_log = logging.getLogger(__name__)


def finetune(experiment: Finetune) -> Result:
    """Runs, or goes on with, a fine-tuning; the best checkpoint becomes the model directory ``experiment.output``.

    Raises:
      InputError: files, columns, labels, model or output directory that cannot be used; nothing is written then.
      FloatingPointError: the run diverged.
    """
    e, record, train, held_out = read(experiment)
    directory = storage.output_directory("--output", e.output)
    return run_job(directory, record, lambda: make_job(e, record, directory, train, held_out))


def plan_finetune(experiment: Finetune) -> tuple[Finetune, Job]:
    """The settled experiment and its job, which nothing has run yet. Raises InputError as ``finetune``."""
    e, record, train, held_out = read(experiment)
    return e, make_job(e, record, storage.output_directory("--output", e.output), train, held_out)


def read(experiment: Finetune) -> tuple[Finetune, dict[str, Any], Table, Table]:
    """The experiment with files, task and columns settled; its record; the tables to train and to evaluate on."""
    e = with_files(experiment)
    require(e, "model", "train", "eval", "output")
    start(e.runtime)
    train, held_out = (read_task(e.task, [path], e.delimiter) for path in (e.train, e.eval))
    e = resolve_options(e, train)
    record = resolved(e, {"train": e.train, "eval": e.eval})
    names = NAMED_TASKS[e.task].names if e.task in NAMED_TASKS else ()
    train, held_out = (without_unlabelled(e, table, names) for table in (train, held_out))
    return e, record, train, held_out


def with_files(e: Finetune) -> Finetune:
    """The experiment with the files of a named task in its directory, where those are not given."""
    if not e.data_dir:
        return e
    if e.task not in NAMED_TASKS:
        raise InputError(f"--data-dir: goes with a named --task, one of {', '.join(NAMED_TASKS)}")
    train, held_out = e.train or find_file(e.task, e.data_dir, "train"), e.eval or find_file(e.task, e.data_dir, "dev")
    return dataclasses.replace(e, train=train, eval=held_out)


@dataclasses.dataclass(frozen=True)
class TrainingInputs:
    """Holds what a run trains on: all that is known before the model exists.

    Attributes:
      config: the model's config as its directory has it.
      task: the task, with the model's own labels where they are the task's.
    """

    config: DebertaConfig
    task: Task
    tokenizer: Tokenizer
    mesh: Mesh
    batches: TrainingBatches


def read_inputs(e: Finetune, record: Mapping[str, Any], train: Table) -> TrainingInputs:
    """Resolves config and task, and lays out the training table as batches. Writes nothing but the cache of tokens.

    Raises:
      InputError: a model, tokenizer, metric, column or length that cannot be used.
    """
    config = resolve_config(e)
    task = resolve_task(e, train).with_labels_of(config)
    if e.metric and e.metric not in task.metric_names:
        raise InputError(f"--metric {e.metric}: this task has {', '.join(task.metric_names)}")
    _log.info("%s", task.describe())
    tokenizer, mesh = load_tokenizer(resolve_tokenizer(e)), mesh_of(e.runtime)
    features = features_of(e, record, task, tokenizer, train, config)
    return TrainingInputs(config, task, tokenizer, mesh, make_batches(e, features, mesh, tokenizer.pad_id))


def make_job(e: Finetune, record: dict[str, Any], directory: Path, train: Table, held_out: Table) -> Job:
    """Everything up to the first step, without writing anything but the cache of tokens."""
    inputs = read_inputs(e, record, train)
    task, tokenizer, mesh, batches = inputs.task, inputs.tokenizer, inputs.mesh, inputs.batches
    evaluated = features_of(e, record, task, tokenizer, held_out, inputs.config)
    part, objective = finetune_objective(e, inputs.config, task)
    predictor = Predictor(
        part.model,
        tokenizer.pad_id,
        max_length=e.max_length,
        batch_size=e.batch_size,
        mesh=mesh,
    )
    details: dict[str, Any] = {}

    def evaluate(params, tick):
        total = len(evaluated.lengths)
        with tqdm(total=total, desc="evaluating", leave=False, file=sys.stderr, disable=not is_writer()) as bar:

            def progress(done: int) -> None:
                tick()
                bar.update(done)

            found = predictor.logits(part.effective(params), evaluated, progress)
        details.update(task.details(found, evaluated, held_out))
        return task.metrics(found, evaluated, held_out)

    def save_best(params):
        save_pretrained(directory, part.model, part.effective(params), tokenizer, overwrite=True)
        if part.lora is not None:
            save_adapter(directory / "adapter", part.model, params, part.lora, e.model)
        if is_writer():
            storage.write_json(directory / "evaluation.json", details)

    return Job(
        directory=directory,
        record=record,
        objective=objective,
        mesh=mesh,
        runtime=e.runtime,
        seed=e.seed,
        batches=batches,
        evaluate=evaluate,
        metric=e.metric or task.metric,
        save_best=save_best,
        eval_every=batches.steps_per_epoch,
    )


def finetune_objective(e: Finetune, config: DebertaConfig, task: Task) -> tuple["Trained", Objective]:
    """The model, and all that its training step is made of; reads no data, and no weights until parameters are asked
    for."""
    part = make_model(e, config, task)
    return part, Objective(
        configs=(part.model.config,),
        parameters=part.parameters,
        initial_params=part.initial_params,
        loss=make_loss(e, task, part),
        loss_weights={"sift": e.sift},
        optimization=e.optimization,
    )


def log_assumed_names(model: str, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Warns where a trained classifier whose labels nobody has named goes on under the task's names: which label is
    which is known from their order alone."""
    ids = LabelIds(theirs)
    if any(ids.find(name) != i for i, name in enumerate(ours)):
        _log.warning(
            "%s: its classifier goes on from what it is, but config.json does not name its labels: it is assumed that "
            "label %s; where that is not so, name them there (id2label)",
            model,
            listed(f"{i} is {name}" for i, name in enumerate(ours)),
        )


def features_of(
    e: Finetune, record: Mapping[str, Any], task: Task, tokenizer: Tokenizer, table: Table, config: DebertaConfig
) -> Features:
    """A table's tokens, from the cache where the same files have been tokenised so before; says what was too long.

    Process 0 makes them first; others find them, or make their own where they do not share its disk.
    """
    files = {part[1] for part in table.parts} or {table.name}
    identity = {
        "features": 2,
        "tokenizer": tokenizer.fingerprint(),
        "task": repr(task),
        "max_length": e.max_length,
        "delimiter": e.delimiter,
        "skip_unlabelled": e.skip_unlabelled,
        "files": sorted(digest for name, digest in record["data"].items() if name in files),
    }
    make = lambda: task.features(table, tokenizer, e.max_length, labelled=True)
    if is_writer():
        features = cached_features(identity, make, storage.cache_directory())
    wait_for_all(f"features {table.name}")
    if not is_writer():
        features = cached_features(identity, make, storage.cache_directory())
    check_vocabulary(features, config.vocab_size, table.name)
    check_length(config, int(features.lengths.max()))
    log_cut(features, table.name, e.max_length)
    return features


def make_batches(e: Finetune, features: Features, mesh: Mesh, pad_id: int) -> TrainingBatches:
    """The run's batches in the layout that the experiment asks for; says how much of them is padding."""
    multiple = mesh.shape["data"] * mesh.shape["fsdp"] * e.runtime.accumulate
    buckets = ()
    if e.batching == "buckets":
        buckets = length_buckets(example_lengths(features), e.max_length)
    longest = int(features.lengths.reshape(-1, features.choices).sum(1).max())
    if e.batching == "packed" and e.row_length and e.row_length < longest:
        raise InputError(f"--row-length {e.row_length}: the longest example has {longest} tokens")
    batches = TrainingBatches(
        features,
        Order(batch_size=e.batch_size, seed=e.seed, epochs=e.epochs),
        pad_id,
        buckets=buckets,
        row_length=e.row_length,
        multiple=multiple,
        share=row_share(mesh),
    )
    padded = 1 - features.lengths.sum() / (features.lengths.max() * len(features.lengths))
    _log.info(
        "%d steps of %d examples; %.0f %% of the places are padding (%.0f %% if all were as long as the longest)",
        len(batches),
        e.batch_size,
        100 * batches.padding(),
        100 * padded,
    )
    return batches


@dataclasses.dataclass(frozen=True)
class Trained:
    """The model of a run; what is trained of it, and how its own parameters follow from that (LoRA's are merged)."""

    model: Model
    parameters: Parameters
    initial_params: Callable[[Any], Any]
    effective: Callable[[Any], Any]
    lora: Lora | None = None


def make_model(e: Finetune, config: DebertaConfig, task: Task) -> Trained:
    """The model, and what gives its parameters when told where they shall live."""
    # A pre-trained model's mask decoder, and with it its absolute positions, are of its masked-LM head alone.
    labels_of_model = config.id2label
    config = dataclasses.replace(
        task.configure(config), mask_decoder=False, cls_dropout=config.cls_dropout if e.dropout is None else e.dropout
    )
    kept = config.num_hidden_layers - e.optimization.freeze_layers
    if e.reinit_layers > max(0, kept):
        rest = f", {e.optimization.freeze_layers} of them frozen" if e.optimization.freeze_layers else ""
        raise InputError(f"--reinit-layers {e.reinit_layers}: the model has {config.num_hidden_layers}{rest}")
    runtime = model_runtime(e)
    spec = head_spec(task.head)
    model = spec.model.create(config, runtime)
    key = jax.random.key(e.seed)

    def initial_params(shardings):
        if e.from_scratch:
            return jax.jit(lambda: init_params(model, key), out_shardings=shardings)()
        names = None if spec.classifier and not spec.named_labels else config.id2label
        _, params, report = load(
            e.model,
            task.head,
            runtime,
            id2label=names,
            new_head=key,
            shardings=shardings,
            ignore=e.ignore,
            base_model=e.base_model or None,
        )
        classifier = f"{spec.classifier.partition('.')[0]}/"
        if any(row.path.startswith(classifier) and not row.initialised for row in report.targets):
            log_assumed_names(e.model, labels_of_model, names or ())
        if not e.reinit_layers:
            return params
        _log.info("drawn anew: the last %d of %d layers", e.reinit_layers, config.num_hidden_layers)
        # Not the key itself: with the seed of a pre-training from scratch it would give that run's first parameters.
        anew = lambda old: redraw_layers(model, old, jax.random.fold_in(key, 2), e.reinit_layers)
        return jax.jit(anew, out_shardings=shardings, donate_argnums=0)(params)

    base = parameters_of(model)
    base = dataclasses.replace(base, frozen=frozen_paths(e.optimization, base.shapes))
    if e.reinit_layers and any("/layers/" in path for path in base.frozen):
        raise InputError("--reinit-layers: --freeze would leave layers as they are drawn; leave one of them out")
    if not e.lora:
        return Trained(model, base, initial_params, lambda params: params)
    if e.optimization.layer_decay != 1.0 or e.optimization.freeze_layers:
        raise InputError("--lora: freezes the encoder; --layer-decay and --freeze-layers do not go with it")
    lora = find_kernels(base, e.lora_targets, e.lora, e.lora_alpha)

    def initial_lora(shardings):
        update = jax.jit(lambda: init_lora(lora, jax.random.fold_in(key, 1)), out_shardings=shardings["lora"])()
        return {"base": initial_params(shardings["base"]), "lora": update}

    return Trained(model, lora_parameters(base, lora), initial_lora, lambda params: merge(params, lora), lora)


def make_loss(e: Finetune, task: Task, part: Trained) -> Loss:
    """The task's loss, with SiFT's beside it where it is asked for."""
    apply = part.model.apply

    def run(params, inputs, key):
        return apply({"params": params}, **inputs, deterministic=False, rngs={"dropout": key})

    def plain(params, batch, key):
        return {"task": task.loss(run(part.effective(params), model_inputs(batch), key), batch)}

    if not e.sift:
        return plain
    if task.sift is None:
        raise InputError(f"--sift: is for text-classification, regression and token-classification, not for {e.task}")
    check_sift(part.model.config)
    sift = Sift(e.sift, e.sift_sigma, e.sift_step, task.sift == "numbers")

    def with_sift(params, batch, key):
        params = part.effective(params)
        inputs = model_inputs(batch)
        z = normalized_words(params, inputs.pop("input_ids"), part.model.dtype)
        forward = lambda p, x, k: run(p, {**inputs, "inputs_embeds": x}, k)
        return sift_terms(forward, lambda out: task.loss(out, batch), params, z, key, sift)

    return with_sift
