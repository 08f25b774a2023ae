"""Fine-tuning a sequence classifier: from files and a model directory to the run's Job."""

import dataclasses
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from deberta_jax import hub
from deberta_jax.config import DebertaConfig
from deberta_jax.data.batches import TrainingBatches, length_buckets
from deberta_jax.data.features import Features, check_vocabulary, make_features
from deberta_jax.data.labels import REGRESSION, LabelSpec, discover_labels, encode_labels
from deberta_jax.data.tables import Table, read_table
from deberta_jax.errors import InputError
from deberta_jax.inference.predict import Predictor, model_inputs, score, sequence_loss
from deberta_jax.models import DebertaForSequenceClassification, Model, init_params
from deberta_jax.models.embeddings import check_length
from deberta_jax.presets import PRESETS
from deberta_jax.sharding import make_mesh
from deberta_jax.text import Tokenizer, load_tokenizer
from deberta_jax.training.experiment import Finetune, Runtime, compute_dtype, require, resolved
from deberta_jax.training.loop import Job, Result, check_directory, fit
from deberta_jax.weights import load, load_config, save_pretrained

_log = logging.getLogger(__name__)

METRICS = ("accuracy", "f1", "matthews_correlation", "pearson", "spearman", "loss")


def finetune(experiment: Finetune) -> Result:
    """Runs, or goes on with, a fine-tuning; the best checkpoint becomes the model directory ``experiment.output``.

    Raises:
      InputError: files, columns, labels, model or output directory that cannot be used; nothing is written then.
      FloatingPointError: the run diverged.
    """
    require(experiment, "model", "train", "eval", "label", "output")
    train, held_out = read_table(experiment.train), read_table(experiment.eval)
    record = resolved(experiment, {"train": experiment.train, "eval": experiment.eval})
    directory = Path(experiment.output)
    finished = check_directory(directory, record)
    if finished is not None:
        _log.info(
            "%s: this run has finished, at step %d of its best checkpoint; nothing to do", directory, finished.step
        )
        return finished
    return fit(make_job(experiment, record, directory, train, held_out))


def make_job(experiment: Finetune, record: dict[str, Any], directory: Path, train: Table, held_out: Table) -> Job:
    """Everything up to the first step, without writing anything."""
    e = experiment
    labels = discover_labels(train, e.label)
    config = architecture(e)
    labels = keep_order(labels, config)
    if labels.problem_type == REGRESSION:
        _log.info("labels: numbers, so this is a regression")
    else:
        _log.info("labels: %s", ", ".join(f"{i} = {name}" for i, name in enumerate(labels.names)))
    metric = choose_metric(e.metric, labels)

    tokenizer = load_tokenizer(hub.resolve(e.tokenizer or tokenizer_source(e.model), files=hub.TEXT_FILES))
    features = [
        features_of(table, tokenizer, e.text, e.max_length, encode_labels(table, e.label, labels), config)
        for table in (train, held_out)
    ]
    mesh = mesh_of(e.runtime)
    rows = round_up(e.batch_size, mesh)
    batches = TrainingBatches(
        features[0], e.batch_size, rows, length_buckets(features[0].lengths, e.max_length), e.seed, e.epochs,
        tokenizer.pad_id,
    )  # fmt: skip
    model, initial_params = make_model(e, config, labels)
    predictor = Predictor(model, tokenizer.pad_id, max_length=e.max_length, batch_size=e.batch_size, mesh=mesh)

    def item_loss(params, batch, key):
        out = model.apply({"params": params}, **model_inputs(batch), deterministic=False, rngs={"dropout": key})
        return sequence_loss(out.logits, batch["labels"], labels.problem_type)  # pyright: ignore

    def evaluate(params, tick):
        assert features[1].labels is not None
        with tqdm(total=len(features[1]), desc="evaluating", leave=False, file=sys.stderr) as bar:

            def progress(done: int) -> None:
                tick()
                bar.update(done)

            logits = predictor.logits(params, features[1], progress)
        return score(logits, features[1].labels, labels.problem_type)

    return Job(
        directory=directory, record=record, model=model, mesh=mesh, optimization=e.optimization, runtime=e.runtime,
        seed=e.seed, initial_params=initial_params, item_loss=item_loss, batches=batches, evaluate=evaluate,
        metric=metric, save_best=lambda params: save_pretrained(directory, model, params, tokenizer, overwrite=True),
        eval_every=batches.steps_per_epoch,
    )  # fmt: skip


def architecture(e: Finetune) -> DebertaConfig:
    """The config of the model directory, hub id or preset.

    Raises:
      InputError: a preset without ``from_scratch``: it has no weights.
    """
    if e.model in PRESETS and not Path(e.model).is_dir():
        if not e.from_scratch:
            raise InputError(
                f"--model {e.model}: is an architecture without weights; give a directory or a hub id such as "
                f"microsoft/{e.model}, or add --from-scratch"
            )
        return PRESETS[e.model]
    return load_config(e.model)


def tokenizer_source(model: str) -> str:
    return f"microsoft/{model}" if model in PRESETS and not Path(model).is_dir() else model


def keep_order(labels: LabelSpec, config: DebertaConfig) -> LabelSpec:
    """The model's own order of the labels where it has just these, so that its classifier goes on from what it is."""
    if labels.problem_type != REGRESSION and sorted(config.id2label) == sorted(labels.names):
        return LabelSpec(labels.problem_type, config.id2label)
    return labels


def choose_metric(metric: str, labels: LabelSpec) -> str:
    if not metric:
        return "pearson" if labels.problem_type == REGRESSION else "accuracy"
    of_numbers = ("pearson", "spearman", "loss")
    fitting = of_numbers if labels.problem_type == REGRESSION else tuple(m for m in METRICS if m not in of_numbers[:2])
    if metric not in fitting:
        raise InputError(f"--metric {metric}: this task has {', '.join(fitting)}")
    return metric


def features_of(
    table: Table, tokenizer: Tokenizer, columns: tuple[str, ...], max_length: int, labels: Any, config: DebertaConfig
) -> Features:
    """Tokenises the text columns of a table and says how many examples were too long."""
    texts = [table.texts(column) for column in columns]
    features = make_features(
        tokenizer, texts[0], texts[1] if len(texts) > 1 else None, max_length=max_length, labels=labels
    )
    check_vocabulary(features, config.vocab_size, table.name)
    check_length(config, int(features.lengths.max()))
    if features.cut:
        _log.info("%s: %d of %d texts are longer than %d tokens and were cut", table.name, features.cut, len(features),
                  max_length)  # fmt: skip
    return features


def mesh_of(runtime: Runtime) -> Mesh:
    return make_mesh(runtime.mesh_data, runtime.mesh_fsdp, runtime.mesh_tensor)


def round_up(batch_size: int, mesh: Mesh) -> int:
    """Rows of a batch: the batch size, or the next number that the devices share evenly."""
    split = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-batch_size // split) * split


def make_model(e: Finetune, config: DebertaConfig, labels: LabelSpec) -> tuple[Model, Callable[[Any], Any]]:
    """The classifier, and what gives its parameters when told where they shall live."""
    config = dataclasses.replace(
        config, id2label=labels.names, problem_type=labels.problem_type,
        cls_dropout=config.cls_dropout if e.dropout is None else e.dropout,
    )  # fmt: skip
    r = e.runtime
    runtime = {"dtype": compute_dtype(e.dtype), "attention": r.attention, "remat": r.remat, "scan": r.scan}
    model = DebertaForSequenceClassification(config, **runtime)
    key = jax.random.key(e.seed)
    if e.from_scratch:
        return model, lambda shardings: jax.jit(lambda: init_params(model, key), out_shardings=shardings)()

    def load_params(shardings):
        return load(
            e.model, "sequence-classification", id2label=labels.names, new_head=key, shardings=shardings, **runtime
        )[1]

    return model, load_params
