"""Runs the same fine-tuning with several seeds: median, spread, and the seeds that learned nothing."""

import dataclasses
import logging
import statistics
from collections.abc import Mapping
from typing import Any

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.training.distributed import is_writer
from deberta_jax.training.experiment import Finetune
from deberta_jax.training.finetuning import finetune

_log = logging.getLogger(__name__)


def finetune_seeds(experiment: Finetune) -> dict[str, Any]:
    """Starts ``experiment.seeds`` fine-tunings in ``output/seed-N``, or continues them; writes ``output/seeds.json``.

    Returns:
      ``metric``, its name; of its values over seeds ``median``, ``mean``, ``deviation`` (of the sample), ``lowest``,
      ``highest``, ``by_seed``; ``collapsed``: seeds whose best model gives every example the same answer; ``best``: the
      directory of the best run. ``stopped``: the signal that ended a run early, or None.

    Raises:
      InputError, FloatingPointError: as ``finetune``.
    """
    e, values, collapsed = experiment, {}, []
    e.check()
    home = storage.output_directory("--output", e.output)
    metric = ""
    for seed in range(e.seed, e.seed + e.seeds):
        directory = home / f"seed-{seed}"
        result = finetune(dataclasses.replace(e, seed=seed, seeds=1, output=str(directory)))
        if result.stopped is not None:
            return {"stopped": result.stopped}
        metric = metric or e.metric or next(iter(result.metrics))
        values[str(seed)] = result.metrics.get(metric)
        if has_collapsed(result.metrics, read_details(directory)):
            collapsed.append(seed)
    summary = {"metric": metric, **spread(values, lowest_is_best=metric == "loss"), "collapsed": collapsed}
    summary["best"] = str(home / f"seed-{summary['best']}")
    if is_writer():
        storage.write_json(home / "seeds.json", summary)
    return {**summary, "stopped": None}


def spread(values: Mapping[str, float | None], *, lowest_is_best: bool = False) -> dict[str, Any]:
    """Returns median and spread over seeds. A value of None, as a constant answer has, counts as 0."""
    numbers = {seed: 0.0 if value is None else value for seed, value in values.items()}
    best = (min if lowest_is_best else max)(numbers, key=numbers.__getitem__)
    return {
        "median": statistics.median(numbers.values()),
        "mean": statistics.fmean(numbers.values()),
        "deviation": statistics.stdev(numbers.values()) if len(numbers) > 1 else 0.0,
        "lowest": min(numbers.values()),
        "highest": max(numbers.values()),
        "by_seed": dict(values),
        "best": best,
    }


def read_details(directory: storage.AnyPath) -> dict[str, Any]:
    """Returns the details of a run's last evaluation; {} with a warning if the file is missing or damaged."""
    try:
        return storage.read_json_object(directory / "evaluation.json", storage.LARGE)
    except InputError as error:
        _log.warning("%s: it is not known whether this seed has learned anything", error)
        return {}


def has_collapsed(metrics: Mapping[str, float | None], details: Mapping[str, Any]) -> bool:
    """Returns True for a model that gives every example the same answer.

    Its confusion matrix has one column that is not zero, or the correlation of its numbers does not exist.
    """
    if type(details.get("predicted_labels")) is int:
        return details["predicted_labels"] < 2
    counts = details.get("confusion")
    if isinstance(counts, list) and all(isinstance(row, list) for row in counts):
        return sum(any(column) for column in zip(*counts, strict=False)) < 2
    return "pearson" in metrics and metrics["pearson"] is None
