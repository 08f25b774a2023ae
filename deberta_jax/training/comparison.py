"""Compares runs: the settings in which they differ, and their metrics, with mean and deviation over seeds."""

import csv
import dataclasses
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deberta_jax import storage
from deberta_jax.errors import InputError, listed, shown
from deberta_jax.training.directory import result_of
from deberta_jax.training.experiment import Finetune, PretrainMLM, PretrainRTD, flat_settings
from deberta_jax.training.plots import new_figure, plain, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Runtime choices that may change speed, memory or rounding. The others only say what a run logs and keeps.
_RUNTIME = ("mesh_data", "mesh_fsdp", "mesh_tensor", "attention", "remat", "scan", "accumulate")
_SEED = "seed"


@dataclasses.dataclass(frozen=True)
class Run:
    """Holds what a run's directory says of it.

    Attributes:
      directory: the run's directory.
      settings: every setting by its name on the command line, but the seed.
      seed: the seed.
      metrics: the metrics of its best checkpoint; None while it is not finished.
      metric: the metric that selected that checkpoint.
    """

    directory: storage.AnyPath
    settings: Mapping[str, Any]
    seed: int
    metrics: Mapping[str, float | None] | None
    metric: str


@dataclasses.dataclass(frozen=True)
class Group:
    """Holds the runs that differ in nothing but the seed.

    Attributes:
      settings: the settings in which the compared groups differ.
      runs: the finished runs.
      unfinished: the directories of the others.
    """

    settings: Mapping[str, Any]
    runs: tuple[Run, ...]
    unfinished: tuple[storage.AnyPath, ...]

    @property
    def seeds(self) -> list[int]:
        """Returns the seeds of the finished runs."""
        return [run.seed for run in self.runs]

    def values(self, metric: str) -> list[float]:
        """Returns a metric of every finished run that has it; a value that does not exist counts as 0."""
        return [run.metrics[metric] or 0.0 for run in self.runs if run.metrics and metric in run.metrics]

    def mean(self, metric: str) -> float | None:
        """Returns the mean of a metric over seeds; None without a finished run."""
        values = self.values(metric)
        return statistics.fmean(values) if values else None

    def deviation(self, metric: str) -> float | None:
        """Returns the standard deviation of the sample of seeds; None of fewer than two."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Holds groups of runs, those with the best mean of ``metric`` first.

    Attributes:
      metric: the metric that selected the best checkpoints.
      metrics: all metrics that a group has, ``metric`` first.
    """

    metric: str
    metrics: tuple[str, ...]
    groups: tuple[Group, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a dict for each group: settings, ``seeds``, and of each metric its mean and ``METRIC deviation``."""
        return [
            {
                **group.settings,
                "seeds": len(set(group.seeds)),
                **{
                    name: value
                    for m in self.metrics
                    for name, value in ((m, group.mean(m)), (f"{m} deviation", group.deviation(m)))
                },
            }
            for group in self.groups
        ]

    def text(self) -> str:
        """Returns the table as text: one line a group, mean and deviation of each metric."""
        settings = list(self.groups[0].settings)
        header = [*settings, "seeds", *self.metrics]
        body = [
            [
                *(_shown(group.settings[name]) for name in settings),
                str(len(set(group.seeds)))
                + (f" of {len(group.runs) + len(group.unfinished)}" if group.unfinished else ""),
                *(_interval(group.mean(m), group.deviation(m)) for m in self.metrics),
            ]
            for group in self.groups
        ]
        widths = [max(len(row[i]) for row in (header, *body)) for i in range(len(header))]
        lines = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *body)
        )
        return "\n".join(line.rstrip() for line in lines)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON: of each group also the values and the directory of every run."""
        return {
            "metric": self.metric,
            "groups": [
                {
                    "settings": dict(group.settings),
                    "runs": [
                        {"directory": str(run.directory), "seed": run.seed, "metrics": dict(run.metrics or {})}
                        for run in group.runs
                    ],
                    "unfinished": [str(directory) for directory in group.unfinished],
                    "mean": {m: group.mean(m) for m in self.metrics},
                    "deviation": {m: group.deviation(m) for m in self.metrics},
                }
                for group in self.groups
            ],
        }

    def plot(self) -> "Figure":
        """Returns a plot of ``metric``: a point for every run, and mean and deviation of every group."""
        figure = new_figure(7, 1.5 + 0.5 * len(self.groups))
        axes = figure.add_subplot()
        names = []
        for at, group in enumerate(reversed(self.groups)):
            values, mean = group.values(self.metric), group.mean(self.metric)
            axes.plot(values, [at] * len(values), ".", color="tab:blue", alpha=0.5)
            if mean is not None:
                axes.errorbar([mean], [at], xerr=group.deviation(self.metric) or 0.0, fmt="o", color="tab:orange")
            names.append(plain(", ".join(f"{k}={_shown(v)}" for k, v in group.settings.items()) or "all", 60))
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel(plain(self.metric))
        axes.grid(alpha=0.3)
        return figure

    def write(self, path: str) -> None:
        """Writes the comparison to a file, as its ending says: ``.json``, ``.csv`` (a line a group) or ``.png``.

        Raises:
          InputError: another ending, or the file cannot be written.
        """
        kind = check_ending(path)
        with storage.output_file("--output", path) as file:
            if kind == ".png":
                save_figure(self.plot(), file, 150)
            else:
                file.write((json.dumps(self.to_json(), indent=2) + "\n" if kind == ".json" else self._csv()).encode())

    def _csv(self) -> str:
        out, rows = io.StringIO(), self.rows()
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()


def check_ending(path: str) -> str:
    """Returns the ending of an output file. Raises InputError for one that ``Comparison.write`` does not know."""
    kind = Path(path).suffix
    if kind not in (".json", ".csv", ".png"):
        raise InputError(f"--output {path}: give a file that ends in .json, .csv or .png")
    return kind


def compare(directories: Sequence[str | storage.AnyPath]) -> Comparison:
    """Compares runs by the files in their directories.

    Args:
      directories: of runs; or directories with runs below them, such as ``--seeds`` and ``sweep`` make.

    Raises:
      InputError: a directory has no run, its files are damaged, or the runs are of different kinds.
    """
    if isinstance(directories, str | Path) or not directories:
        raise InputError("compare: give the directories of one or more runs")
    found = {path.resolve(): path for name in directories for path in run_directories(storage.as_path(name))}
    runs = [read_run(path) for path in found.values()]
    kinds = {run.settings["job"] for run in runs}
    if len(kinds) > 1:
        raise InputError(f"compare: give runs of one kind, not of {listed(sorted(kinds))}")
    names = list({name: None for run in runs for name in run.settings})
    differing = [n for n in names if len({_key(run.settings.get(n)) for run in runs}) > 1]
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(_key(run.settings.get(name)) for name in differing), []).append(run)
    metric = runs[0].metric
    made = tuple(
        Group(
            {name: members[0].settings.get(name) for name in differing},
            tuple(sorted((run for run in members if run.metrics is not None), key=lambda run: run.seed)),
            tuple(run.directory for run in members if run.metrics is None),
        )
        for members in groups.values()
    )
    metrics = dict.fromkeys(name for run in runs for name in run.metrics or ())
    ordered = (metric, *(name for name in metrics if name != metric)) if metric in metrics else tuple(metrics)
    return Comparison(metric, ordered, _best_first(made, metric))


def run_directories(directory: storage.AnyPath) -> list[storage.AnyPath]:
    """Returns the directory of a run, or those of all runs below it. Raises InputError if there are none."""
    with storage.reaching(directory):
        if (directory / "experiment.json").is_file():
            return [directory]
    below = [path.parent for path in storage.files_below(directory, "experiment.json")]
    if not below:
        raise InputError(f"{directory}: holds no run, nor does a directory below it; give directories of runs")
    return below


def read_run(directory: storage.AnyPath) -> Run:
    """Reads what a run's directory says of it. Raises InputError if its files are damaged."""
    record = storage.read_record(directory / "experiment.json", {"job": str, "experiment": dict, "data": dict})
    kinds = {kind.__name__: kind for kind in (Finetune, PretrainMLM, PretrainRTD)}
    kind = kinds.get(record["job"])
    defaults = json.loads(json.dumps(dataclasses.asdict(kind()))) if kind else {}
    flat = flat_settings({**defaults, **record["experiment"], "runtime": {}})
    experiment = {name.rpartition(".")[2]: value for name, value in flat.items()}  # as the command line names them
    for name in ("output", "seeds", "recipe", "published_score"):
        experiment.pop(name, None)
    seed = experiment.pop(_SEED, 0)
    if not isinstance(record.get("runtime", {}), dict):
        raise InputError(f"{directory / 'experiment.json'}: its runtime is {shown(record['runtime'])}; it is damaged")
    runtime = {**defaults.get("runtime", {}), **record.get("runtime", {})}
    settings = {"job": record["job"], **experiment, **{name: runtime.get(name) for name in _RUNTIME}}
    settings["data"] = " ".join(sorted(str(digest)[:8] for digest in record["data"].values()))
    result = result_of(directory / "result.json")
    metrics = None if result is None else result.metrics
    metric = experiment.get("metric") or (next(iter(metrics), "loss") if metrics and kind is Finetune else "loss")
    return Run(directory, settings, seed, metrics, metric)


def _best_first(groups: tuple[Group, ...], metric: str) -> tuple[Group, ...]:
    sign = 1 if metric == "loss" else -1
    worst = float("inf")
    key = lambda mean: worst if mean is None else sign * mean
    return tuple(sorted(groups, key=lambda group: key(group.mean(metric))))


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "-"
    return "-" if value in ("", None) else str(value)


def _interval(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.4f}" if deviation is None else f"{mean:.4f} ± {deviation:.4f}"
