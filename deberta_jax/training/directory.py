"""The directory of a run: whether it may be used, what it holds, files written whole."""

import dataclasses
import json
import logging
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deberta_jax.errors import InputError
from deberta_jax.inference.tasks import Metrics
from deberta_jax.training.experiment import difference

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
    """``metrics`` of the best checkpoint and the ``step`` it is from; ``stopped`` is the signal that ended the run
    before its last step, or None."""

    step: int
    metrics: Metrics
    stopped: signal.Signals | None = None


def check_directory(directory: Path, record: Mapping[str, Any]) -> Result | None:
    """Whether a run may write here. None: begin, or go on where it stopped; a Result: it has already finished, and
    the log says so.

    Raises:
      InputError: the directory holds something else, another run, or one that was not to be resumed.
    """
    if re.match(r"\w+:/", str(directory)):
        raise InputError(f"--output {directory}: a run writes to a disk; mount the bucket and give the directory")
    if not directory.exists():
        _check_parent(directory)
        return None
    if not directory.is_dir():
        raise InputError(f"--output {directory}: is a file; give a directory")
    saved = directory / "experiment.json"
    # A run killed at its very start leaves no more than the beginning of that file.
    if all(path == _partial(saved) for path in directory.iterdir()):
        return None
    if not saved.is_file():
        raise InputError(f"--output {directory}: is not empty and holds no run; give another directory")
    try:
        theirs = json.loads(saved.read_text(encoding="utf-8"))
    except ValueError:
        theirs = None
    if not isinstance(theirs, dict) or "job" not in theirs:
        raise InputError(f"--output {directory}: its experiment.json is not a run's; give another directory")
    why = difference(dict(record), theirs)
    if why is not None:
        raise InputError(f"--output {directory}: holds another run ({why}); give another directory or delete it")
    if record["runtime"].get("resume") == "never":
        raise InputError(f"--output {directory}: holds this run already and --resume is never; delete it or resume")
    finished = directory / "result.json"
    if not finished.is_file():
        return None
    found = json.loads(finished.read_text(encoding="utf-8"))
    _log.info("%s: this run has finished, at step %d of its best checkpoint; nothing to do", directory, found["step"])
    return Result(found["step"], found["metrics"])


def _check_parent(directory: Path) -> None:
    parent = next(path for path in directory.absolute().parents if path.exists())
    if not parent.is_dir():
        raise InputError(f"--output {directory}: {parent} is a file; give another directory")
    if not os.access(parent, os.W_OK):
        raise InputError(f"--output {directory}: {parent} cannot be written to; give another directory")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file in one rename."""
    partial = _partial(path)
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")
