"""Knows TPU chips and slices: what a chip can hold, compute and move, and which slices there are."""

import dataclasses
import math
import re
from collections.abc import Mapping

from deberta_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Holds the figures of one chip.

    Attributes:
      flops: bfloat16 FLOP/s.
      hbm: bytes of memory.
      hbm_bandwidth: bytes a second from and to memory.
      ring_bandwidth: bytes a second through the two links along one direction of the torus, which a ring uses at once.
      network_bandwidth: a chip's share of the data-centre network between slices, in bytes a second.
    """

    flops: float
    hbm: int
    hbm_bandwidth: float
    ring_bandwidth: float
    network_bandwidth: float


# Peak, capacity and bandwidth: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, section "System architecture". Links: its
# "bidirectional inter-chip interconnect bandwidth per chip" (v4 2400 Gbit/s one way; v5e 400, v5p 1200, v6e 800 GB/s),
# divided by the ports of a chip (6, 4, 6, 4); a ring over one axis of the mesh has two of them. Network: the same
# pages; v5e and v6e 6.4 and 25.6 Tbit/s for a pod of 256 chips, v5p 50 Gbit/s a chip; for v4, of which they give none,
# that of v5p.
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1.228e12, 100e9, 6.25e9),
    "v5e": Chip(197e12, 16 * 2**30, 0.819e12, 100e9, 3.125e9),
    "v5p": Chip(459e12, 95 * 2**30, 2.765e12, 200e9, 6.25e9),
    "v6e": Chip(918e12, 32 * 2**30, 1.64e12, 200e9, 12.5e9),
}
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
SLICES = {"v4": _DEEP, "v5e": _FLAT, "v5p": _DEEP, "v6e": _FLAT}
# v4-N and v5p-N are named after cores, of which a chip has two.
_CORES = {"v4": 2, "v5p": 2}


@dataclasses.dataclass(frozen=True)
class Target:
    """Describes the devices to compile for.

    Attributes:
      platform: ``tpu``, ``cuda`` or ``cpu``.
      topology: of one slice, such as ``v5e:4x4``, ``cuda:8`` or ``cpu:8``.
      chips: number of chips or devices, in all slices.
      slices: number of equal slices, which a data-centre network joins.
      flag: the option that gave it, ``--topology`` or a run's ``--plan``. Errors name it, and the options for mesh and
        batch that go with it.
    """

    platform: str
    topology: str
    chips: int
    slices: int = 1
    # Does not change what is compiled.
    flag: str = dataclasses.field(default="--topology", repr=False, compare=False)

    @property
    def chip(self) -> Chip | None:
        """Returns the figures of its chips; None for devices without known figures."""
        return CHIPS.get(self.topology.partition(":")[0])

    @property
    def typed(self) -> str:
        """Returns the option as the user typed it."""
        return f"{self.flag} {self.topology}{f' --slices {self.slices}' if self.slices > 1 else ''}"

    @property
    def name(self) -> str:
        """Returns the topology with the number of slices, such as ``2 x v5e:4x4``."""
        return f"{self.slices} x {self.topology}" if self.slices > 1 else self.topology

    def mesh_flags(self, sizes: Mapping[str, int]) -> str:
        """Returns the options that set these mesh sizes."""
        if self.flag == "--plan":
            return " ".join(f"--mesh-{name} {size}" for name, size in sizes.items())
        return f"--mesh {','.join(f'{name}={size}' for name, size in sizes.items())}"

    @property
    def batch_flag(self) -> str:
        """Returns the option that sets the batch size."""
        return "--batch-size" if self.flag == "--plan" else "--batch"


def target_of(topology: str, flag: str = "--topology", slices: int = 1) -> Target:
    """Returns the target of a text.

    Args:
      topology: a TPU slice by shape, ``v5e:4x4``, or by name, ``v5e-16``; ``cuda:8`` or ``cpu:8`` for 8 devices.
      flag: the option that gave it, for error messages.
      slices: number of such TPU slices.

    Raises:
      InputError: a slice that does not exist, the message has those that do; or a number of slices that cannot be.
    """
    if slices < 1 or (slices > 1 and topology.strip().lower().startswith(("cuda", "cpu"))):
        raise InputError(f"--slices {slices}: give a number of TPU slices, at least 1")
    name, separator, size = re.match(r"([^:-]*)([:-]?)(.*)", topology.strip().lower()).groups()  # pyright: ignore
    if name in ("cuda", "cpu"):
        if not (size or "1").isdigit() or int(size or 1) < 1:
            raise InputError(f"{flag} {topology}: give a number of devices, such as {name}:8")
        return Target(name, f"{name}:{int(size or 1)}", int(size or 1), flag=flag)
    if name not in CHIPS:
        here = ", or here" if flag == "--plan" else ""
        raise InputError(
            f"{flag} {topology}: give a TPU slice such as v5e:4x4 (of {', '.join(CHIPS)}), cuda:8 or cpu:8{here}"
        )
    shapes = SLICES[name]
    if separator == "-" and size.isdigit():
        chips = int(size) / _CORES.get(name, 1)
        size = next((s for s in shapes if _chips(s) == chips), size)
    if size not in shapes:
        raise InputError(f"{flag} {topology}: there is no such slice; {name} comes as {', '.join(shapes)}")
    return Target("tpu", f"{name}:{size}", slices * _chips(size), slices, flag)


def _chips(size: str) -> int:
    return math.prod(int(n) for n in size.split("x"))
