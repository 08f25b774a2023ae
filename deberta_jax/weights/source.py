"""Defines what all readers return: tensors by name, each of which is read only on request."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.dtypes
import numpy as np

from deberta_jax.errors import InputError
from deberta_jax.storage import AnyPath

BFLOAT16 = np.dtype(jax.dtypes.bfloat16)

FLOATS = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16", BFLOAT16: "bf16", np.dtype(np.float64): "f64"}

MOST_TENSORS = 50_000
"""Largest number of tensors of a model, in all its files. The released models have up to 800."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Describes one tensor of a file.

    Attributes:
      name: its name in the file.
      shape: its shape.
      dtype: its dtype in the file.
      read: returns its values as an array, which maps the file where the layout allows it. Raises InputError if the
        bytes are damaged.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Folded(Tensor):
    """Describes a tensor that is computed from several tensors of a file."""

    reason: str = ""
    """How it is computed, for the report."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Holds the opened tensors of a file, of all shards of a model, or of an Orbax checkpoint."""

    path: AnyPath
    """The file, the index of the shards, or the directory."""
    files: tuple[AnyPath, ...]
    """All files that are read."""
    tensors: Mapping[str, Tensor]
    """Tensors by their names in the files."""
    config: Mapping[str, Any] | None = None
    """A config stored inside the file, as in Microsoft's task checkpoints."""
    left: tuple[str, ...] = ()
    """Names of other entries, which are not read, such as an epoch or the state of an optimizer."""
    read_sharded: Callable[[str, np.dtype, Any], Any] | None = None
    """Reads a leaf directly onto its devices, given (path, dtype, sharding); None if the format does not allow it."""


def kind(dtype: np.dtype) -> str:
    """Returns the short name of a dtype: f32, f16, bf16, f64, or the name that numpy gives it."""
    return FLOATS.get(np.dtype(dtype), str(dtype))


def check_count(path: AnyPath, count: int) -> None:
    """Checks the number of tensors of a file before they are described. Raises InputError if it is too large."""
    if count > MOST_TENSORS:
        raise InputError(f"{path}: has {count} tensors; no model here has more than {MOST_TENSORS}. Check what it is")
