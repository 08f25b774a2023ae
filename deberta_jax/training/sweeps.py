"""Runs an experiment over a grid of settings and several seeds, each in its own directory."""

import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from signal import Signals
from typing import Any

from deberta_jax import storage
from deberta_jax.errors import InputError, did_you_mean, listed, shown
from deberta_jax.training.comparison import Comparison, compare
from deberta_jax.training.distributed import is_writer
from deberta_jax.training.experiment import Experiment, Finetune
from deberta_jax.training.finetuning import finetune
from deberta_jax.training.pretraining import pretrain

_log = logging.getLogger(__name__)

_LONGEST_NAME = 120


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """Holds the result of a sweep.

    Attributes:
      comparison: of all finished runs; None if there is none.
      diverged: the directories of runs whose loss became NaN or infinite.
      stopped: the signal that ended the sweep early; None for a finished one.
    """

    comparison: Comparison | None
    diverged: tuple[storage.AnyPath, ...] = ()
    stopped: Signals | None = None


def sweep(experiment: Experiment, grid: Mapping[str, Sequence[Any]], *, seeds: int = 1) -> SweepResult:
    """Runs an experiment with every combination of settings and seeds, or continues such a sweep.

    A run is in ``NAME=VALUE,.../seed-N`` below ``experiment.output``, and ``sweep.json`` there holds the comparison.
    The same call goes on where it was stopped: finished runs are not repeated, and more values or seeds add runs.

    Args:
      experiment: the settings that all runs have.
      grid: values by setting; names as on the command line, with ``_``, such as
        ``{"learning_rate": [1e-5, 3e-5], "lora": [0, 8]}``.
      seeds: number of seeds, from ``experiment.seed`` on.

    Raises:
      InputError: an unknown setting, or as ``finetune`` and ``pretrain``.
    """
    if seeds < 1:
        raise InputError(f"sweep: seeds must be at least 1, not {seeds}")
    if not isinstance(grid, Mapping):
        raise InputError(f"sweep: the grid is a {type(grid).__name__}; give a dict from settings to lists of values")
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise InputError(f"sweep: the values of {shown(name)} are {shown(values)}; give a list")
    for name in ("seed", "seeds", "output"):
        if name in grid:
            advice = "the directory of each run follows from its settings" if name == "output" else "give seeds=3"
            raise InputError(f"sweep: {name!r} cannot be in the grid; {advice}")
    empty = [name for name, values in grid.items() if not values]
    if empty:
        raise InputError(f"sweep: the grid has no value for {listed(empty)}")
    home = storage.output_directory("--output", experiment.output)
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    runs = [
        (home / point_name(point) / f"seed-{seed}", {**point, "seed": seed})
        for point in points
        for seed in range(experiment.seed, experiment.seed + seeds)
    ]
    experiments = [(d, with_settings(experiment, {**s, "output": str(d)})) for d, s in runs]
    for _, e in experiments:
        e.check()
    done: list[storage.AnyPath] = []
    diverged: list[storage.AnyPath] = []
    for i, (directory, e) in enumerate(experiments):
        _log.info("run %d of %d: %s", i + 1, len(experiments), directory)
        try:
            result = finetune(e) if isinstance(e, Finetune) else pretrain(e)
        except FloatingPointError as error:
            _log.warning("%s: has diverged (%s); the sweep goes on", directory, error)
            diverged.append(directory)
            continue
        if result.stopped is not None:
            return SweepResult(compare(done) if done else None, tuple(diverged), result.stopped)
        done.append(directory)
    comparison = compare(done) if done else None
    if comparison is not None and is_writer():
        comparison.write(str(home / "sweep.json"))
    return SweepResult(comparison, tuple(diverged))


def with_settings(experiment: Any, settings: Mapping[str, Any]) -> Any:
    """Returns an experiment with other settings, also of its ``optimization``, ``runtime`` and other parts.

    Raises:
      InputError: an unknown setting.
    """
    own = {field.name for field in dataclasses.fields(experiment)}
    parts = {name: getattr(experiment, name) for name in sorted(own)}
    parts = {name: part for name, part in parts.items() if dataclasses.is_dataclass(part)}
    changed: dict[str, Any] = {}
    for name, value in settings.items():
        owner = next((part for part in parts if name in {f.name for f in dataclasses.fields(parts[part])}), None)
        if name in own and name not in parts:
            changed[name] = value
        elif owner is not None:
            changed[owner] = dataclasses.replace(changed.get(owner, parts[owner]), **{name: value})
        else:
            known = [*own - parts.keys(), *(f.name for part in parts.values() for f in dataclasses.fields(part))]
            raise InputError(
                f"sweep: {type(experiment).__name__} has no setting {shown(name)}{did_you_mean(name, known)}"
            )
    return dataclasses.replace(experiment, **changed)


def point_name(point: Mapping[str, Any]) -> str:
    """Returns the name of a directory for a combination of settings: ``NAME=VALUE,...``, or a hash of a longer one."""
    text = ",".join(f"{name}={value}" for name, value in point.items())
    safe = "".join(c if c.isalnum() or c in "=,._-+" else "_" for c in text)
    if safe == text and len(text) <= _LONGEST_NAME:
        return text or "all"
    digest = hashlib.sha256(json.dumps(dict(point), sort_keys=True, default=str).encode()).hexdigest()[:12]
    return f"{safe[:_LONGEST_NAME]}-{digest}"
