"""Loads a trained model together with its task, for the commands ``evaluate`` and ``predict``."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from deberta_jax import hub, storage
from deberta_jax.data.files import matches, matching_files, stored_file
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError
from deberta_jax.inference.loaded import Loaded, load_head, load_model, model_config, trained_experiment
from deberta_jax.inference.long_texts import LongText, WindowScore
from deberta_jax.models import Runtime
from deberta_jax.tasks import (
    Metrics,
    NonFinite,
    Task,
    TaskOptions,
    check_options,
    kind_name,
    kind_of_model,
    read_task,
    resolve_options,
    task_of_model,
    without_unlabelled,
)
from deberta_jax.weights import Check, load_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedOptions(TaskOptions):
    """Holds the options for loading and applying a trained model."""

    model: str
    """Model directory or hub id with a trained head."""
    batch_size: int = 32
    """Number of texts that are computed at once."""
    max_length: int | None = None
    """Longest input in tokens; by default that of the training run, else 512."""
    long_text: LongText = "truncate"
    """How a text is read that is longer than that, for classification and regression of single texts: without its end
    (truncate), without its middle (head-tail), or in overlapping windows, whose number predict adds to the answer."""
    window_score: WindowScore = "max"
    """Which score of a text's windows counts: for each label the largest probability, or the mean."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation."""
    ignore: tuple[str, ...] = ()
    """Patterns of the model's tensors to leave out, such as 'crf.*' for a head that is not known here."""
    base_model: str | None = None
    """Base model of a peft adapter: a directory or hub id. By default the one that adapter_config.json names."""
    check: Check = "sampled"
    """How much of the model's files is compared with its checksums.json: small files and a sample, or every byte."""


def load_trained(
    o: TrainedOptions, data: str, *, dtype: Any, labelled: bool, non_finite: NonFinite = "refuse"
) -> tuple[Task, Loaded, Table]:
    """Loads a model, a table to apply it to, and the task.

    Task and columns are those given, else those of the training run, else those of a named task, else guesses from the
    table.

    Args:
      o: the options.
      data: path or pattern of the table's files.
      dtype: dtype of the computation.
      labelled: the table has labels; rows without one are an error, or are skipped with ``skip_unlabelled``.
      non_finite: as for ``pipeline``.

    Raises:
      InputError: the model, a file, a column or a number cannot be used.
    """
    task = task_name(o)
    table = read_task(task, [data], o.delimiter)
    return load_for_table(o, task, table, dtype=dtype, labelled=labelled, non_finite=non_finite)


def task_name(o: TrainedOptions) -> str:
    """Returns the task that is given, else that of the training run, else what the model's files say.

    Raises:
      InputError: an option, or the model's config, cannot be used.
    """
    check_options(o)
    directory = hub.resolve(o.model)
    load_config(o.model, base_model=o.base_model)  # raises InputError for a directory without a model
    return o.task or (trained_experiment(directory) or {}).get("task", "") or kind_of_model(directory)


def load_for_table(
    o: TrainedOptions,
    task_given: str,
    table: Table,
    *,
    dtype: Any,
    labelled: bool,
    non_finite: NonFinite = "refuse",
    local: bool = False,
) -> tuple[Task, Loaded, Table]:
    """Loads a model and the task for a table, or for the first rows of one; otherwise as ``load_trained``.

    ``task_given`` is what ``task_name`` returns. With ``local`` only the devices of this process compute.
    """
    directory = hub.resolve(o.model)
    recorded = trained_experiment(directory) or {}
    options = dataclasses.replace(merge_options(o, recorded, table), task=task_given)
    options = resolve_options(options, table, labelled=labelled)
    source = o.model if storage.is_remote(o.model) or hub.split_file(o.model)[1] else directory
    config = model_config(kind_name(options.task), source, ignore=o.ignore, base_model=o.base_model)
    if labelled:
        table = without_unlabelled(options, table, config.id2label)
    task = task_of_model(options, config, table)
    model = load_model(
        kind_name(options.task),
        o.model,
        runtime=Runtime(dtype),
        max_length=o.max_length,
        batch_size=o.batch_size,
        ignore=o.ignore,
        base_model=o.base_model,
        non_finite=non_finite,
        check=o.check,
        device="local" if local else None,
    )
    model = dataclasses.replace(model, long_text=o.long_text, window_score=o.window_score)
    return task, model, table


def metrics_of_copy(
    o: TrainedOptions, data: str, *, dtype: Any, rewrite: Callable[[], str | Path]
) -> tuple[Metrics, Metrics]:
    """Returns the metrics of a model on a labelled file, and those of a copy of it on the same task.

    Args:
      o, data, dtype: as for ``load_trained``.
      rewrite: makes the copy, after the metrics of the model, and returns its directory.

    Raises:
      InputError: as ``load_trained``; the copy is not made then.
    """
    task, model, table = load_trained(o, data, dtype=dtype, labelled=True)
    before = model.metrics_for(task, table)
    predictor = model.predictor
    copy = load_head(
        task.head, rewrite(), runtime=Runtime(dtype), max_length=predictor.max_length, batch_size=o.batch_size
    )
    return before, copy.metrics_for(task, table)


def merge_options(given: TaskOptions, recorded: dict[str, Any], table: Table) -> TaskOptions:
    """Returns the options given, else those in the training run's record, if the table has such columns."""
    out: dict[str, Any] = {}
    for field in dataclasses.fields(TaskOptions):
        value, recorded_value = getattr(given, field.name), recorded.get(field.name, field.default)
        recorded_value = tuple(recorded_value) if isinstance(recorded_value, list) else recorded_value
        names = (recorded_value,) if isinstance(recorded_value, str) else recorded_value
        is_column = field.name in ("text", "label", "labels", "choices")
        of_file = field.name in ("delimiter", "skip_unlabelled")
        usable = not of_file and (not is_column or all(name in table.columns for name in names))
        out[field.name] = value if value != field.default or not usable else recorded_value
    return TaskOptions(**out)


def check_overwrites_nothing(option: str, output: str, data: str, model: str) -> None:
    """Checks that an output is neither a file of the data nor a file of the model.

    Args:
      option: the option that names the output, for messages.
      output: the file to write; empty or ``-`` if there is none.
      data: path or pattern of the data.
      model: the model.

    Raises:
      InputError: it is one of them, or the pattern of the data matches it.
    """
    if storage.is_remote(output):
        if output == data or (storage.is_pattern(data) and matches(output, data)):
            raise InputError(f"{option} {output}: is the input, or would be one; give another file")
        if output.startswith(f"{model.rstrip('/')}/") and storage.matching(output):
            raise InputError(f"{option} {output}: is a file of the model; give another file")
        return
    path = Path(output).expanduser()
    if storage.is_pattern(data) and output and matches(os.path.abspath(path), os.path.abspath(data)):
        raise InputError(f"{option} {output}: would be an input, as {data} matches it; give another file")
    if not path.is_file():
        return
    inputs = [data] if data == "-" else matching_files(data)
    if any(path.samefile(file) for name in inputs if (file := stored_file(name)) is not None):
        raise InputError(f"{option} {output}: is the input; give another file")
    directory = Path(model).expanduser()
    if directory.is_dir() and directory.resolve() in path.resolve().parents:
        raise InputError(f"{option} {output}: is a file of the model; give another file")
