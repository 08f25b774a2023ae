"""Lists the platforms that have Pallas kernels, and imports those kernels when a program needs them.

Pallas' backends are experimental parts of JAX that move and disappear. A platform's kernels are therefore imported only
when they are used; everything else works without them.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax

from deberta_jax.errors import InputError
from deberta_jax.ops.attention.pallas.tiling import HOPPER


@dataclasses.dataclass(frozen=True)
class KernelPlatform:
    """Describes one platform's kernels.

    Attributes:
      module: name of our module with their ``forward`` and ``backward``.
      requires: name of the JAX module that they are written with.
      dtypes: names of the dtypes they compute in.
      tested_jax: the JAX releases that they were tested with, as a requirement.
    """

    module: str
    requires: str
    dtypes: tuple[str, ...]
    tested_jax: str = "<0.13"


KERNEL_PLATFORMS: Mapping[str, KernelPlatform] = {
    "tpu": KernelPlatform(
        "deberta_jax.ops.attention.tpu.kernels", "jax.experimental.pallas.tpu", ("float32", "bfloat16")
    ),
    "gpu": KernelPlatform(
        "deberta_jax.ops.attention.gpu.kernels",
        "jax.experimental.pallas.mosaic_gpu",
        ("bfloat16", "float16"),
        ">=0.11.2,<0.13",
    ),
}
KERNEL_DTYPES = tuple(dict.fromkeys(dtype for kernels in KERNEL_PLATFORMS.values() for dtype in kernels.dtypes))
_OLDEST_CAPABILITY = 8  # major: Ampere, whose matrix units multiply bfloat16


def import_kernels(platform: str) -> ModuleType:
    """Imports the kernels of ``platform``, a key of ``KERNEL_PLATFORMS``, and returns their module.

    Raises:
      InputError: they cannot be imported with the installed JAX.
    """
    kernels = KERNEL_PLATFORMS[platform]
    try:
        return importlib.import_module(kernels.module)
    except (ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"attention='pallas' on a {platform.upper()} needs {kernels.requires}, which JAX {jax.__version__} does "
            f"not provide ({type(error).__name__}: {reason}); install 'jax{kernels.tested_jax}', or use "
            "attention='xla'"
        ) from None


def gpu_capability() -> str:
    """Returns the compute capability of the GPU that a program traced now is for, such as "9.0".

    That is the device of the mesh that is set, or this process's. As Pallas does, takes a GPU that says none for 9.0.
    """
    device: Any = jax.local_devices()[0]
    described = jax.sharding.get_abstract_mesh().abstract_device
    # A mesh describes its devices by their kind, which is all that is known of those of this process.
    if described is not None and described.device_kind != device.device_kind:
        device = described
    return str(device.compute_capability) if hasattr(device, "compute_capability") else HOPPER


def check_device(device: Any) -> None:
    """Checks that kernels can be compiled for ``device``: an older GPU has no instruction that they need.

    Raises:
      InputError: a GPU before Ampere, or one that is not NVIDIA's.
    """
    if device.platform != "gpu":
        return
    capability = str(device.compute_capability)
    major = capability.partition(".")[0]
    if not major.isdigit() or int(major) < _OLDEST_CAPABILITY:
        raise InputError(
            f"attention='pallas' needs an NVIDIA GPU of compute capability {_OLDEST_CAPABILITY}.0 or later, not "
            f"{capability} ({device.device_kind}); use attention='xla'"
        )
