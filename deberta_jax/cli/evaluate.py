"""``deberta-jax evaluate``."""

import dataclasses
import json
import sys
from typing import Any, Literal

import jax
from tqdm import tqdm

from deberta_jax import hub
from deberta_jax.data.table import Table
from deberta_jax.data.tasks import read_task
from deberta_jax.inference.pipelines import Loaded, load_model, model_config, trained_experiment
from deberta_jax.inference.tasks import (
    Task,
    TaskOptions,
    kind_of,
    kind_of_model,
    settle_options,
    task_of_model,
    without_unlabelled,
)
from deberta_jax.training.experiment import compute_dtype
from deberta_jax.weights import load_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(TaskOptions):
    """Metrics of a model on a labelled file: one JSON object on standard output.

    What is not given is as the run that trained the model had it."""

    model: str
    """Model directory or hub id with a trained head."""
    data: str
    """File as ``finetune`` reads it, or a pattern of several."""
    batch_size: int = 32
    max_length: int | None = None
    """Longest input in tokens; what the model was trained with if not given, else 512."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    ignore: tuple[str, ...] = ()
    """Patterns of the model's tensors to leave out, such as 'crf.*' for a head that is not known here."""
    base_model: str | None = None
    """Base of a peft adapter: a directory or hub id; what adapter_config.json names if not given."""


def run(args: Args) -> None:
    task, model, table = prepared(args, args.model, args.data, labelled=True)
    with bar(table) as progress:
        metrics = model.metrics_for(task, table, progress.update)
    print(json.dumps(metrics))


def prepared(args: Any, directory: str, data: str, *, labelled: bool) -> tuple[Task, Loaded, Table]:
    """The task, the trained model and the table; columns are given, remembered from the training, known, or guessed."""
    place = hub.resolve(directory)
    load_config(directory, base_model=args.base_model)  # says what a directory is that holds no model
    trained = trained_experiment(place) or {}
    kind = args.task or trained.get("task", "") or kind_of_model(place)
    table = read_task(kind, [data], args.delimiter)
    options = dataclasses.replace(remembered(args, trained, table), task=kind)
    options = dataclasses.replace(options, **settle_options(options, table, labelled=labelled))
    source = directory if hub.split(directory)[1] else place
    config = model_config(kind_of(options.task), source, ignore=args.ignore, base_model=args.base_model)
    if labelled:
        table = without_unlabelled(options, kind_of(options.task), table, config.id2label)
    task = task_of_model(options, config, table)
    model = load_model(
        kind_of(options.task),
        directory,
        task.read,
        per_token=task.per_token,
        dtype=compute_dtype(args.dtype),
        max_length=args.max_length,
        batch_size=args.batch_size,
        ignore=args.ignore,
        base_model=args.base_model,
    )
    return task, model, table


def remembered(args: Any, trained: dict[str, Any], table: Table) -> TaskOptions:
    """The options given, else those of the run that trained the model, where the table has such columns."""
    out: dict[str, Any] = {}
    for field in dataclasses.fields(TaskOptions):
        given, before = getattr(args, field.name), trained.get(field.name, field.default)
        before = tuple(before) if isinstance(before, list) else before
        names = (before,) if isinstance(before, str) else before
        is_column = field.name in ("text", "label", "labels", "choices")
        of_file = field.name in ("delimiter", "skip_unlabelled")
        there = not of_file and (not is_column or all(name in table.columns for name in names))
        out[field.name] = given if given != field.default or not there else before
    return TaskOptions(**out)


def bar(table: Table) -> tqdm:
    return tqdm(total=len(table), unit="text", file=sys.stderr, leave=False, disable=jax.process_index() != 0)
