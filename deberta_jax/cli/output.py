"""Prints the result of a run, for the commands that train."""

import json
import logging
import sys
from signal import Signals
from typing import Any

from deberta_jax.errors import InputError
from deberta_jax.training.directory import Result
from deberta_jax.training.distributed import is_writer
from deberta_jax.training.experiment import Experiment

_log = logging.getLogger(__name__)


def print_result(result: Result, experiment: Experiment) -> None:
    """Prints a run's result as one JSON object; exits with 128 + signal where a signal stopped the run."""
    output = experiment.output
    if result.stopped is not None:
        exit_stopped(experiment, result.stopped, result.step)
    print_json({"output": output, "step": result.step, **result.metrics})


def print_json(found: dict[str, Any]) -> None:
    """Prints one JSON object; of several processes the first one does."""
    if is_writer():
        print(json_text(found))


def json_text(value: Any, **options: Any) -> str:
    """Returns a result as one line of JSON.

    Args:
      value: the result.
      options: arguments of ``json.dumps``.

    Raises:
      InputError: a number in it is NaN or infinite, which JSON cannot represent.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError as error:
        raise InputError(f"the result has a number that is not finite ({error}); nothing was written for it") from None


def exit_stopped(experiment: Experiment, signal: Signals, step: int | None = None) -> None:
    """Logs how to continue a run that a signal stopped, and exits with 128 + signal."""
    if is_writer():
        after = "" if step is None else f" after step {step}"
        rest = "to go on" if experiment.runtime.keep_state else "to begin it again: --keep-state 0 saved no state"
        _log.info("%s: stopped by %s%s; run the same command %s", experiment.output, signal.name, after, rest)
    sys.exit(128 + signal)
