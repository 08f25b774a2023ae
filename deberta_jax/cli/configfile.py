"""Reads experiments from Python files. ``--config configs/x.py`` calls its ``get_config()``.

Other arguments override what it returns. ``--config configs/x.py:WORD`` calls ``get_config("WORD")``.
"""

import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deberta_jax.cli.main import parse
from deberta_jax.errors import InputError


def experiment_arguments(kind: type, argv: Sequence[str]) -> Any:
    """Returns the experiment of arguments ``[command, ...]``, with the defaults of a ``--config`` file if there is one.

    Raises:
      InputError: a config file that is not there, or whose ``get_config()`` returns something else.
    """
    argv = list(argv)
    default = None
    for i, word in enumerate(argv):
        if word == "--config" or word.startswith("--config="):
            path = word.partition("=")[2] if "=" in word else (argv[i + 1] if i + 1 < len(argv) else "")
            default = load_config_file(path, kind)
            del argv[i : i + (1 if "=" in word else 2)]
            break
    more = "--config FILE.py: start from what its get_config() returns; options on the command line override it."
    return parse(kind, argv, default, f"{inspect.cleandoc(kind.__doc__ or '')}\n\n{more}")


def load_config_file(path: str, kind: type) -> Any:
    """Returns what ``get_config()`` of a Python file returns, or ``get_config(word)`` for ``file.py:word``.

    Raises:
      InputError: no such file, a file that raises, or one that returns something else.
    """
    path, colon, word = path.partition(":")
    if not path.endswith(".py"):
        raise InputError(f"--config {path}: give a Python file that has a function get_config()")
    if not Path(path).is_file():
        raise InputError(f"--config {path}: no such file")
    spec = importlib.util.spec_from_file_location("experiment_config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _errors_of(path):
        spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise InputError(f"--config {path}: has no function get_config()")
    with _errors_of(path):
        experiment = module.get_config(*([word] if colon else []))
    if not isinstance(experiment, kind):
        raise InputError(f"--config {path}: get_config() gives {type(experiment).__name__}, expected {kind.__name__}")
    return experiment


@contextmanager
def _errors_of(path: str) -> Iterator[None]:
    """Turns any error of the file, which is the user's input, into an InputError that names it."""
    try:
        yield
    except Exception as error:
        raise InputError(f"--config {path}: {type(error).__name__}: {error}") from error
