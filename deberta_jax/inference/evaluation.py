"""Evaluates a trained model on a labelled file: metrics, and the most confident mistakes."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.inference.trained import TrainedOptions, check_overwrites_nothing, load_trained

Bar = Callable[[int], AbstractContextManager[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(TrainedOptions):
    """Holds the options for evaluating a model."""

    data: str
    """File as ``finetune`` reads it, or a pattern of several."""
    metrics: str = ""
    """File to write the metrics to as well, as JSON."""
    errors: str = ""
    """File to write the rows with a wrong answer to, as jsonl: the most confident mistakes first. For classification,
    several labels, and regression, where the largest errors come first."""


def evaluate(o: EvaluateOptions, *, dtype: Any, bar: Bar) -> Mapping[str, float | None]:
    """Returns the metrics of a model on a labelled file, and writes the files that the options name.

    Args:
      o: the options.
      dtype: dtype of the computation.
      bar: makes a progress bar, such as one of tqdm, over a number of texts.

    Raises:
      InputError: as ``load_trained``; a file cannot be written, or the task has no mistakes to list.
    """
    for option, name in (("--metrics", o.metrics), ("--errors", o.errors)):
        storage.check_output_file(option, name or "-")
        check_overwrites_nothing(option, name, o.data, o.model)
    if o.metrics and os.path.realpath(o.metrics) == os.path.realpath(o.errors or os.devnull):
        raise InputError(f"--errors {o.errors}: is the file of --metrics; give another file")
    task, model, table = load_trained(o, o.data, dtype=dtype, labelled=True)
    with bar(len(table)) as progress:
        logits, features = model.labelled_logits(task, table, progress.update)
    metrics = task.metrics(logits, features, table)
    if o.errors:
        mistakes = task.mistakes(logits, features, table)
        if mistakes is None:
            raise InputError("--errors: is for classification and regression of texts; leave it out")
        with storage.output_text("--errors", o.errors) as file:
            for mistake in mistakes:
                file.write(json.dumps(mistake, ensure_ascii=False) + "\n")
    if o.metrics:
        with storage.output_text("--metrics", o.metrics) as file:
            file.write(json.dumps(metrics, indent=2) + "\n")
    return metrics
