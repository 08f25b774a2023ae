"""Imports the optional packages of ONNX."""

import importlib
from typing import Any

from deberta_jax.errors import InputError

NEEDS = "pip install 'deberta_jax[onnx]'"


def library(name: str) -> Any:
    """Returns the module ``onnx``, ``onnxruntime`` or one below them. Raises InputError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise InputError(f"export to ONNX needs {error.name or package}, which is missing; {NEEDS}") from None
