"""Checks whether a run may use a directory, and what is there already."""

import dataclasses
import logging
import math
import os
import signal
from collections.abc import Mapping
from typing import Any

from deberta_jax import storage
from deberta_jax.errors import InputError, brief, shown
from deberta_jax.tasks import Metrics
from deberta_jax.training.experiment import difference
from deberta_jax.weights import find_incomplete

_log = logging.getLogger(__name__)


# What a run writes into its directory beside states and models.
_FILES = (
    "log.jsonl",
    "sessions.jsonl",
    "result.json",
    "evaluation.json",
    "report.html",
    "curves.png",
    "config.json",
    "model.safetensors",
)


@dataclasses.dataclass(frozen=True)
class Result:
    """Holds the result of a run.

    Attributes:
      step: the step of the best checkpoint.
      metrics: its metrics.
      stopped: the signal that ended the run before its last step; None for a finished run.
    """

    step: int
    metrics: Metrics
    stopped: signal.Signals | None = None


def check_directory(directory: storage.AnyPath, record: Mapping[str, Any]) -> Result | None:
    """Checks that a run may write to a directory.

    Returns:
      None where the run is to start or to continue; its result where it has finished, which is also logged.

    Raises:
      InputError: the directory holds something else, another run or damaged files, or ``--resume never`` forbids to
        continue.
      RunAgainError: a bucket cannot be reached now.
    """
    _check_bucket(directory, record)
    storage.check_output_directory("--output", directory)
    with storage.reaching(directory):
        return _found(directory, record)


def _found(directory: storage.AnyPath, record: Mapping[str, Any]) -> Result | None:
    """Returns what ``check_directory`` does, of a directory that can be written."""
    if not directory.exists():
        return None
    saved = directory / "experiment.json"
    # A run that is killed when it starts leaves its lock and the beginning of that file.
    left = {directory / storage.LOCK, *storage.partials(directory, saved.name)}
    if left.issuperset(directory.iterdir()):
        return None
    if not saved.is_file():
        raise InputError(f"--output {directory}: is not empty and holds no run; give another directory")
    try:
        theirs = storage.read_record(saved, {"job": str, "experiment": dict, "data": dict})
    except InputError as error:
        why = str(error).removeprefix(f"{saved}: ")
        raise InputError(
            f"--output {directory}: its experiment.json is not a run's ({why}); give another directory"
        ) from None
    why = difference(dict(record), theirs)
    if why is not None:
        raise InputError(f"--output {directory}: holds another run ({why}); give another directory or delete it")
    if record["runtime"].get("resume") == "never":
        raise InputError(f"--output {directory}: holds this run already and --resume is never; delete it or resume")
    _check_files(directory)
    found = result_of(directory / "result.json")
    if found is None:
        return None
    incomplete = incomplete_model(directory, record)
    if incomplete is not None:
        state = max((int(path.name) for path in directory.glob("state/*") if path.name.isdecimal()), default=None)
        if state != found.step:
            raise InputError(lost_model(directory, incomplete, found.step, state))
        _log.warning("%s; the best model is written again from the state of step %d", incomplete, state)
        return None
    _log.info("%s: this run has finished, at step %d of its best checkpoint; nothing to do", directory, found.step)
    return found


def _check_bucket(directory: storage.AnyPath, record: Mapping[str, Any]) -> None:
    """Checks that a run can write all that it writes to a bucket. Raises InputError for what goes to disks alone.

    Orbax writes states to ``gs://`` and to disks.
    """
    if not storage.is_url("--output", directory, ("gs",)):
        return
    for name in ("profile", "tensorboard"):
        if record["runtime"].get(name):
            raise InputError(f"--{name}: is written to local disks alone; leave it out, or give a local --output")


def _check_files(directory: storage.AnyPath) -> None:
    """Checks that the files that a run writes, where they exist, are files. Raises InputError for another thing."""
    for name in _FILES:
        path = directory / name
        if os.path.lexists(path) and not path.is_file():
            raise InputError(f"{path}: is no file; delete it, and run the same command again")
    states = directory / "state"
    if os.path.lexists(states) and not states.is_dir():
        raise InputError(f"{states}: is no directory; delete it, and run the same command again")


def result_of(finished: storage.AnyPath) -> Result | None:
    """Returns the result of a run that has finished, or None. Raises InputError if the file is damaged."""
    if not finished.is_file():
        return None
    try:
        found = storage.read_record(finished, {"step": int, "metrics": dict})
        for name, value in found["metrics"].items():
            if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
                raise InputError(f"{finished}: damaged: {brief(name)} is {shown(value)}; expected a number")
    except InputError as error:
        raise InputError(
            f"{error}; delete this file and run the same command again, which goes on from the last saved state"
        ) from None
    return Result(found["step"], found["metrics"])


def incomplete_model(directory: storage.AnyPath, record: Mapping[str, Any]) -> str | None:
    """Returns what the best model of a run lacks, as a phrase that names the file; None if it is complete."""
    names = ("generator", "discriminator") if record["job"] == "PretrainRTD" else (".",)
    found = (find_incomplete(directory / name) for name in names)
    return next((phrase for phrase in found if phrase is not None), None)


def lost_model(directory: storage.AnyPath, incomplete: str, step: int, state: int | None) -> str:
    """Returns the message for a best model that cannot be made again.

    Args:
      incomplete: what it lacks, see ``incomplete_model``.
      step: the step of the best model.
      state: the step of the latest state; None: there is none.
    """
    kept = "no state is" if state is None else f"only the state of step {state} is"
    return (
        f"--output {directory}: its best model, of step {step}, is not complete ({incomplete}), and {kept} there to "
        f"make it from; copy the model back, or delete {directory} to train again"
    )


def record_problem(record: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with the record of a state; None if nothing is."""
    none = type(None)
    types = {"run": str, "position": int, "evaluated": int, "best_step": int | none, "best": dict | none}
    for name, expected in (types | {"unwritten": list}).items():
        if not isinstance(record.get(name, record), expected):
            return f"{name} is {shown(record.get(name))}"
    numbers = [*(record["best"] or {}).items()]
    for measured in record["unwritten"]:
        if not isinstance(measured, dict):
            return f"unwritten has {shown(measured)}"
        numbers += measured.items()
    odd = [(name, value) for name, value in numbers if not isinstance(value, int | float | none)]
    return f"{brief(odd[0][0])} is {shown(odd[0][1])}" if odd else None
