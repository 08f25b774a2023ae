"""The same fine-tuning with several seeds: median, spread, and the seeds that learned nothing."""

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from deberta_jax import storage
from deberta_jax.training.distributed import is_writer
from deberta_jax.training.experiment import Finetune
from deberta_jax.training.finetune import finetune


def finetune_seeds(experiment: Finetune) -> dict[str, Any]:
    """Runs, or goes on with, ``experiment.seeds`` fine-tunings in ``output/seed-N``; the summary is seeds.json there.

    Returns:
      ``metric``, and of its values over seeds ``median``, ``mean``, ``deviation`` (of the sample), ``lowest``,
      ``highest``, ``by_seed``; ``collapsed``: seeds whose best model answers alike whatever it is asked; ``best``: the
      directory of the best. ``stopped``: the signal that ended it early, or None.
    """
    e, values, collapsed = experiment, {}, []
    home = storage.output_directory("--output", e.output)
    metric = ""
    for seed in range(e.seed, e.seed + e.seeds):
        directory = home / f"seed-{seed}"
        result = finetune(dataclasses.replace(e, seed=seed, seeds=1, output=str(directory)))
        if result.stopped is not None:
            return {"stopped": result.stopped}
        metric = metric or e.metric or next(iter(result.metrics))
        values[str(seed)] = result.metrics[metric]
        if has_collapsed(result.metrics, storage.read_json(directory / "evaluation.json")):
            collapsed.append(seed)
    summary = {"metric": metric, **spread(values, lowest_is_best=metric == "loss"), "collapsed": collapsed}
    summary["best"] = str(home / f"seed-{summary['best']}")
    if is_writer():
        storage.write_json(home / "seeds.json", summary)
    return {**summary, "stopped": None}


def spread(values: Mapping[str, float | None], *, lowest_is_best: bool = False) -> dict[str, Any]:
    """Median and spread over seeds; a metric that does not exist for a seed (a constant answer) counts as 0."""
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


def has_collapsed(metrics: Mapping[str, float | None], details: Mapping[str, Any]) -> bool:
    """Whether a model answers alike whatever it is asked: one column of its confusion matrix holds all, or a
    correlation with its numbers does not exist."""
    if "confusion" in details:
        return sum(any(column) for column in zip(*details["confusion"], strict=True)) < 2
    return "pearson" in metrics and metrics["pearson"] is None
