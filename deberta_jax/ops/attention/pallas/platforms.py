"""The Pallas kernels of each platform: what they compute in, and how they are imported.

Pallas' backends are experimental parts of JAX that move and disappear. So a platform's kernels are imported when a
program needs them and not with the package, and everything else works without them.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from types import ModuleType

import jax

from deberta_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Backend:
    """One platform's kernels.

    Attributes:
      module: name of our module with their ``forward`` and ``backward``.
      requires: name of the JAX module that they are written with.
      dtypes: names of the dtypes they compute in.
      untested_jax: the first JAX release that they were not tested with.
    """

    module: str
    requires: str
    dtypes: tuple[str, ...]
    untested_jax: str = "0.13"


BACKENDS: Mapping[str, Backend] = {
    "tpu": Backend("deberta_jax.ops.attention.tpu.kernels", "jax.experimental.pallas.tpu", ("float32", "bfloat16")),
    "gpu": Backend(
        "deberta_jax.ops.attention.gpu.kernels", "jax.experimental.pallas.triton", ("float32", "bfloat16", "float16")
    ),
}


def import_kernels(platform: str) -> ModuleType:
    """Imports the kernels of ``platform``, a key of ``BACKENDS``.

    Raises:
      InputError: they cannot be imported with the JAX that is installed.
    """
    backend = BACKENDS[platform]
    try:
        return importlib.import_module(backend.module)
    except (ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"attention='pallas' on a {platform.upper()} needs {backend.requires}, which JAX {jax.__version__} does "
            f"not provide ({type(error).__name__}: {reason}); install 'jax<{backend.untested_jax}', or use "
            "attention='shift'"
        ) from None
