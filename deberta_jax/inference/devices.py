"""Finds the devices that the argument ``device`` of a pipeline names."""

import re
from collections.abc import Sequence
from typing import Any

import jax

from deberta_jax.errors import InputError, shown

Device = int | str | jax.Device | None

# The names of PyTorch and of JAX for the platforms of JAX.
_PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "gpu": "gpu", "rocm": "gpu", "tpu": "tpu", "xla": "tpu"}


def devices_of(device: Any) -> Sequence[Any] | None:
    """Returns the devices to compute on; None for all.

    Args:
      device: None; ``local`` for those of this process; -1 or ``cpu`` for the CPU; the number of an accelerator, from
        0; ``cuda``, ``gpu`` or ``tpu``, with ``:`` and a number for another than the first; or a device of JAX.

    Raises:
      InputError: there is no such device, or this process computes on another platform.
    """
    if device is None:
        return None
    if isinstance(device, jax.Device):
        return [device]
    if device == "local":
        return jax.local_devices()
    found = re.fullmatch(r"(\w+?)(?::(\d+))?", "cpu" if device == -1 else str(device))
    here = jax.default_backend()
    if isinstance(device, bool) or not isinstance(device, (int, str)) or found is None:
        raise InputError(f"device={shown(device)}: give a number, a name such as 'cpu', 'cuda:0' or 'tpu', or a device")
    if isinstance(device, int) and device >= 0:
        platform, number = "gpu or tpu" if here == "cpu" else here, device
    else:
        platform, number = _PLATFORMS.get(found[1], found[1]), int(found[2] or 0)
    if platform != here:
        raise InputError(
            f"device={shown(device)}: this process computes on {here}; leave device out, or start the process with "
            "the environment variable JAX_PLATFORMS set"
        )
    devices = jax.local_devices()
    if number >= len(devices):
        raise InputError(f"device={shown(device)}: there are {len(devices)} devices, numbered from 0")
    return [devices[number]]
