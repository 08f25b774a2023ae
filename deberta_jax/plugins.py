"""Imports the modules that a user names with ``--plugin``, which add heads and kinds of task.

Only what stands on the command line is imported: nothing that a model directory or a run's record names ever is.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from deberta_jax.errors import InputError

IMPORTED: list[str] = []
"""The modules that were imported: a process that compiles for this one imports them too."""


def import_plugins(argv: Sequence[str]) -> list[str]:
    """Imports the module of every ``--plugin MODULE`` and returns the other arguments.

    Modules are looked for in the current directory too, after all other places.

    Raises:
      InputError: a module that does not exist, or that raises.
    """
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        option, equals, name = word.partition("=")
        if option != "--plugin":
            rest.append(word)
            continue
        import_plugin(name if equals else next(words, ""))
    return rest


def import_plugin(name: str) -> None:
    """Imports one module. Raises InputError as ``import_plugins``."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError(f"--plugin {name}: give the name of a Python module, such as my_heads or my_package.heads")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise InputError(f"--plugin {name}: {type(error).__name__}: {error}") from error
    IMPORTED.append(name)
