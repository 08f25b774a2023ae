"""What the measurements were made on: versions, devices, and which packages are missing."""

import functools
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from worker import Case, Request, Skip

PACKAGES = (
    "jax",
    "jaxlib",
    "jax-cuda13-plugin",
    "jax-cuda12-plugin",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "torch",
    "triton",
    "transformers",
    "flashdeberta",
    "disentangled-flash",
    "nvidia-cudnn-cu13",
    "nvidia-cudnn-cu12",
)
# Modules that parts of the package or of the kit use where they are there.
OPTIONAL = (
    "tyro",
    "beartype",
    "matplotlib",
    "scipy",
    "sklearn",
    "pyarrow",
    "torch",
    "transformers",
    "triton",
    "flashdeberta",
    "disentangled_flash",
)


def cases(request: Request) -> list[Case]:
    """Returns one case for the software, one for the devices as JAX sees them, one as PyTorch does."""
    return [
        Case("software", functools.partial(_software, request.tiny)),
        Case("jax", _jax),
        Case("torch", functools.partial(_torch, request.tiny)),
    ]


def _software(tiny: bool) -> dict[str, Any]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    query = "name,driver_version,memory.total,compute_cap,clocks.max.sm,power.limit"
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": versions,
        "missing": [name for name in OPTIONAL if importlib.util.find_spec(name) is None],
        "nvidia_smi": _output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"),
        "commit": _output("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
    }


def _output(*command: str) -> str | None:
    """Returns the first line that a command prints; None where it cannot be run."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip().partition("\n")[0] or None


def _jax() -> dict[str, Any]:
    import jax

    from deberta_jax.ops.attention import IMPLEMENTATIONS, expected_implementation

    device, backend = jax.local_devices()[0], jax.default_backend()
    return {
        "backend": backend,
        "card": device.device_kind,
        "devices": len(jax.local_devices()),
        "compute_capability": getattr(device, "compute_capability", None),
        "memory_limit_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        "implementations": list(IMPLEMENTATIONS),
        "auto_if_its_check_passes": {
            dtype: expected_implementation(backend, dtype) for dtype in ("bfloat16", "float32")
        },
    }


def load_torch(tiny: bool) -> Any:
    """Returns the module torch, its GPU ready where there is one.

    Raises:
      Skip: it cannot be imported, or sees no GPU although the sizes are those for one.
    """
    try:
        import torch
    except (ImportError, OSError) as error:
        raise Skip(f"torch is not importable: {error}") from error
    if not tiny and not torch.cuda.is_available():
        raise Skip(f"torch {torch.__version__} sees no GPU")
    if torch.cuda.is_available():
        torch.cuda.init()  # memory statistics are refused before
    return torch


def _torch(tiny: bool) -> dict[str, Any]:
    torch = load_torch(tiny)
    row = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    if not torch.cuda.is_available():
        return row | {"card": "cpu"}
    properties = torch.cuda.get_device_properties(0)
    return row | {
        "card": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
    }
