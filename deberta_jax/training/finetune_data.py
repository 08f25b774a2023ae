"""Makes tokens and batches from the tables of a fine-tuning run."""

import contextlib
import dataclasses
import logging
from typing import Any

import jax
from jax.sharding import Mesh

from deberta_jax import storage
from deberta_jax.config import DebertaConfig
from deberta_jax.data.batches import TrainingBatches, batches
from deberta_jax.data.cache import TokenCache
from deberta_jax.data.feature_checks import Bounds
from deberta_jax.data.features import Features, check_vocabulary, log_cut
from deberta_jax.data.streaming import Part, divided
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError
from deberta_jax.models.embeddings import check_length
from deberta_jax.progress import quiet
from deberta_jax.tasks import Task, resolve_task
from deberta_jax.text import Tokenizer, load_tokenizer
from deberta_jax.training.experiment import Finetune
from deberta_jax.training.process_options import mesh_of
from deberta_jax.training.resolve import ResolvedExperiment, check_same_tokenizer, resolve_config, resolve_tokenizer
from deberta_jax.training.shared_tokens import shared_features

_log = logging.getLogger(__name__)

PART_ROWS = 1 << 14
"""Number of rows that are tokenized together, whatever the number of processes."""


@dataclasses.dataclass(frozen=True)
class TrainingInputs:
    """Holds what a run trains on, before the model is made.

    Attributes:
      config: the config of the model directory.
      task: the task; its labels have the model's order and case if the model has the same labels.
      tokenizer: the tokenizer.
      mesh: the devices.
      batches: the training batches.
    """

    config: DebertaConfig
    task: Task
    tokenizer: Tokenizer
    mesh: Mesh
    batches: TrainingBatches


def read_inputs(resolved: ResolvedExperiment) -> TrainingInputs:
    """Reads config and tokenizer, and makes batches from the training table. Writes only the cache of tokens.

    Raises:
      InputError: a model, tokenizer, metric, column or length cannot be used.
    """
    e = resolved.experiment
    config = resolve_config(e)
    task = resolve_task(e, resolved.train).with_labels_of(config)
    if e.metric and e.metric not in task.metric_names:
        raise InputError(f"--metric {e.metric}: this task has {', '.join(task.metric_names)}")
    _log.info("%s", task.describe())
    tokenizer, mesh = load_tokenizer(resolve_tokenizer(e)), mesh_of(e.runtime)
    if e.distillation.teacher:
        check_same_tokenizer("--teacher", e.distillation.teacher, e.tokenizer or e.model, tokenizer)
    features = features_of(resolved, task, tokenizer, resolved.train, config)
    return TrainingInputs(config, task, tokenizer, mesh, make_batches(e, features, mesh, tokenizer.pad_id))


def features_of(
    resolved: ResolvedExperiment, task: Task, tokenizer: Tokenizer, table: Table, config: DebertaConfig
) -> Features:
    """Returns the tokens of a table, from the cache if the same files were tokenized in the same way before.

    The table is tokenized in parts of 16,384 rows, and each process tokenizes its share of them. A task from outside
    the package may look at several rows together, and its code may change: each process calls it with the whole table,
    and its tokens are not cached.

    Logs how many texts were truncated.

    Raises:
      InputError: a row cannot be used, an id is outside the model's vocabulary, or a text is longer than the model's
        absolute positions.
    """
    e = resolved.experiment
    if type(task).__module__.startswith("deberta_jax."):
        parts = list(divided(table, PART_ROWS)) if len(table) > PART_ROWS else [Part(len(table), lambda: table)]

        def make(number: int) -> Features:
            # Later parts repeat what the log says of the first.
            with contextlib.nullcontext() if number < jax.process_count() else quiet():
                return task.features(parts[number].table(), tokenizer, e.max_length, labelled=True)

        identity = _identity(resolved, task, tokenizer, table)
        bounds = _bounds(task, tokenizer, table, config, e.max_length)
        cache = TokenCache(identity, storage.cache_directory(), bounds)
        features = shared_features(cache, len(parts), make, leads=resolved.leads)
    else:
        features = task.features(table, tokenizer, e.max_length, labelled=True)
    check_vocabulary(features, config.vocab_size, table.name)
    check_length(config, int(features.lengths.max()))
    log_cut(features, table.name, e.max_length)
    return features


def _identity(resolved: ResolvedExperiment, task: Task, tokenizer: Tokenizer, table: Table) -> dict[str, Any]:
    """Returns all that determines the tokens of a table. Changes to it would lose the caches of older versions."""
    e = resolved.experiment
    files = {part[1] for part in table.parts} or {table.name}
    return {
        "features": 2,
        "tokenizer": tokenizer.fingerprint(),
        "task": repr(task),
        "max_length": e.max_length,
        "delimiter": e.delimiter,
        "skip_unlabelled": e.skip_unlabelled,
        "files": sorted(digest for name, digest in resolved.record["data"].items() if name in files),
    }


def _bounds(task: Task, tokenizer: Tokenizer, table: Table, config: DebertaConfig, max_length: int) -> Bounds:
    labels = task.configure(config).num_labels
    return Bounds(vocab_size=tokenizer.vocab_size, labels=labels, rows=len(table), max_length=max_length)


def make_batches(e: Finetune, features: Features, mesh: Mesh, pad_id: int) -> TrainingBatches:
    """Returns the training batches in the experiment's layout, and logs the fraction of padding.

    Raises:
      InputError: as ``data.batches.batches``.
    """
    made = batches(
        features,
        pad_id,
        batch_size=e.batch_size,
        epochs=e.epochs,
        seed=e.seed,
        batching=e.batching,
        row_length=e.row_length,
        max_length=e.max_length,
        accumulate=e.runtime.accumulate,
        mesh=mesh,
    )
    unpacked_padding = 1 - features.lengths.sum() / (features.lengths.max() * len(features.lengths))
    _log.info(
        "%d steps of %d examples; %.0f %% of the token slots are padding (%.0f %% if all were as long as the longest)",
        len(made),
        e.batch_size,
        100 * made.padding(),
        100 * unpacked_padding,
    )
    return made
