"""What every reader hands over: tensors by name, each read only when asked for."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.dtypes
import numpy as np

from deberta_jax.storage import AnyPath

BFLOAT16 = np.dtype(jax.dtypes.bfloat16)

FLOATS = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16", BFLOAT16: "bf16", np.dtype(np.float64): "f64"}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file. ``read()`` gives it as an array that maps the file where the layout allows it.

    ``read`` raises InputError where the bytes turn out to be damaged.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Folded(Tensor):
    """A tensor computed from more than one of a file."""

    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A file, or the shards of one, or an array checkpoint: names to tensors, and what else it said."""

    path: AnyPath
    files: tuple[AnyPath, ...]
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] | None = None
    """An architecture stored inside the file, as Microsoft's task checkpoints do."""
    left: tuple[str, ...] = ()
    """Entries beside the tensors that are not read: an epoch, an optimizer's state."""
    place: Callable[[str, np.dtype, Any], Any] | None = None
    """Where the format allows it: (path, dtype, sharding) -> that leaf on its devices, each shard read once."""


def kind(dtype: np.dtype) -> str:
    """The short name of a dtype: f32, f16, bf16, f64, or numpy's own."""
    return FLOATS.get(np.dtype(dtype), str(dtype))
