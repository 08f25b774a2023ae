"""Reads which devices to compile for: TPU slices, GPUs, or simulated devices."""

import dataclasses
import math
import re
from collections.abc import Mapping

from deberta_jax.errors import InputError
from deberta_jax.planning.cards import CARDS, Card
from deberta_jax.planning.chips import CHIPS, CORES, SLICES, Chip


@dataclasses.dataclass(frozen=True)
class Target:
    """Describes the devices to compile for.

    Attributes:
      platform: ``tpu``, ``cuda`` or ``cpu``.
      topology: of one slice or host, such as ``v5e:4x4``, ``h100:8``, ``cuda:8`` or ``cpu:8``.
      chips: number of chips or devices, in all slices or hosts.
      slices: number of equal TPU slices, or of equal hosts of GPUs, which a network joins.
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
    def card(self) -> Card | None:
        """Returns the GPU by name; None for other devices, and for ``cuda``, which is no certain GPU."""
        return CARDS.get(self.topology.partition(":")[0])

    @property
    def chip(self) -> Chip | None:
        """Returns the figures of its chips; None for devices without known figures."""
        return CHIPS.get(self.topology.partition(":")[0]) if self.card is None else self.card.chip

    @property
    def typed(self) -> str:
        """Returns the option as the user typed it."""
        several = (f"x{self.slices}" if self.card else f" --slices {self.slices}") if self.slices > 1 else ""
        return f"{self.flag} {self.topology}{several}"

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
      topology: a TPU slice by shape, ``v5e:4x4``, or by name, ``v5e-16``; GPUs of one host, ``h100:8``, or of two,
        ``h100:8x2``; ``cuda:8`` or ``cpu:8`` for 8 devices.
      flag: the option that gave it, for error messages.
      slices: number of such TPU slices.

    Raises:
      InputError: a slice that does not exist, the message has those that do; or a number of slices that cannot be.
    """
    text = topology.strip().lower()
    name, separator, size = re.match(r"(a100-[48]0(?=:|$)|[^:-]*)([:-]?)(.*)", text).groups()  # pyright: ignore
    if slices < 1 or (slices > 1 and name not in CHIPS):
        raise InputError(f"--slices {slices}: give a number of TPU slices, at least 1")
    if name in CARDS:
        counts = re.fullmatch(r"([1-9]\d{0,2})(?:x([1-9]\d{0,3}))?", size or "1")
        if counts is None:
            raise InputError(f"{flag} {topology}: give GPUs of a host, {name}:8, or of several hosts, {name}:8x2")
        cards, hosts = int(counts[1]), int(counts[2] or 1)
        return Target("cuda", f"{name}:{cards}", cards * hosts, hosts, flag)
    if name in ("cuda", "cpu"):
        if not (size or "1").isdigit() or int(size or 1) < 1:
            raise InputError(f"{flag} {topology}: give a number of devices, such as {name}:8")
        return Target(name, f"{name}:{int(size or 1)}", int(size or 1), flag=flag)
    if name not in CHIPS:
        here = ", or here" if flag == "--plan" else ""
        raise InputError(
            f"{flag} {topology}: give a TPU slice such as v5e:4x4 (of {', '.join(CHIPS)}), GPUs such as h100:8 (of "
            f"{', '.join(CARDS)}), cuda:8 or cpu:8{here}"
        )
    shapes = SLICES[name]
    if separator == "-" and size.isdigit():
        chips = int(size) / CORES.get(name, 1)
        size = next((s for s in shapes if _chips(s) == chips), size)
    if size not in shapes:
        raise InputError(f"{flag} {topology}: there is no such slice; {name} comes as {', '.join(shapes)}")
    return Target("tpu", f"{name}:{size}", slices * _chips(size), slices, flag)


def _chips(size: str) -> int:
    return math.prod(int(n) for n in size.split("x"))
