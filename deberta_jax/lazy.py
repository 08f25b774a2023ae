"""Imports the public names of a package when they are first used: nobody waits for what a program does not use."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any


def load_name(package: str, name: str, sources: Mapping[str, Sequence[str]]) -> Any:
    """Returns a public name of a package, for the package's ``__getattr__``.

    Args:
      package: the package, for the message.
      name: the name that is used.
      sources: the public names by the module of ``deberta_jax`` that defines them.

    Raises:
      AttributeError: no module defines the name.
    """
    for module, names in sources.items():
        if name in names:
            return getattr(importlib.import_module(f"deberta_jax.{module}"), name)
    raise AttributeError(f"module {package!r} has no attribute {name!r}")
