"""Counts what a compiled program does on one chip, from its HLO: FLOPs, memory traffic, collectives.

XLA's own count has a loop's body once, however often it runs, and nothing for Pallas kernels. Here a loop counts by its
number of trips, and a kernel by a formula.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np

from deberta_jax.planning.groups import axes_of, device_groups
from deberta_jax.planning.hlo import Array, Computation, HloProgram, Instruction

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# These move nothing: they are names, views, or the end of something that is counted at its start.
_FREE = {
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "while",
    "conditional",
    "after-all",
    "partition-id",
    "replica-id",
    "copy-done",
    "slice-done",
    "async-done",
    "async-update",
    "all-gather-done",
    "all-reduce-done",
    "collective-permute-done",
    "send-done",
    "recv-done",
    "opt-barrier",
    "add-dependency",
}
_MARKERS = (
    "AllocateBuffer",
    "AsyncCollectiveDone",
    "AsyncCollectiveStart",
    "ConcatBitcast",
    "AssumeGatherIndicesInBound",
    "GatherScatterIndicesBitpacked",
    "Sharding",
)
Kernel = Callable[[Instruction, tuple[Array, ...]], tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Collective:
    """Holds the sum of all collectives of one kind over the same mesh axes.

    Attributes:
      kind: such as ``all-gather``.
      axes: such as ``("fsdp",)``.
      count: number of runs in a step.
      bytes: bytes of the whole arrays exchanged; does not depend on the number of chips.
      sent: bytes that one chip sends in a ring of n chips: (n-1)/n of ``bytes``, twice that for an all-reduce. From 8
        to 256 chips this grows by 14 % for the same arrays.
      largest: bytes of the largest array that one of them leaves on a chip.
    """

    kind: str
    axes: tuple[str, ...]
    count: float
    bytes: float
    sent: float
    largest: int


@dataclasses.dataclass(frozen=True)
class Costs:
    """Holds what one chip does in a step.

    Attributes:
      flops: FLOPs of matmuls and convolutions, kernels included.
      hbm_bytes: bytes read from and written to main memory.
      collectives: sums by kind and axes.
      network_sent: bytes that one chip sends to other slices through the data-centre network. Of an all-reduce over n
        slices these are 2 (n-1)/n of its part of the array, as in a ring.
      network_count: number of runs of such exchanges.
      pairs: (flops, bytes) of each instruction times its number of runs, for a roofline by instruction.
      kernels: names of the Pallas kernels, with the number of runs.
    """

    flops: float
    hbm_bytes: float
    collectives: tuple[Collective, ...]
    pairs: tuple[tuple[float, float], ...]
    kernels: Mapping[str, float]
    network_sent: float = 0.0
    network_count: float = 0.0

    @property
    def collective_bytes(self) -> float:
        """Returns the bytes of the whole arrays that are exchanged."""
        return sum((c.bytes for c in self.collectives), 0.0)

    @property
    def collective_sent_bytes(self) -> float:
        """Returns the bytes that one chip sends."""
        return sum((c.sent for c in self.collectives), 0.0)


def count(
    program: HloProgram, mesh: Mapping[str, int], kernel: Kernel | None = None, *, slices: int = 1, hosts: int = 1
) -> Costs:
    """Returns what a step does on one chip.

    Args:
      program: the program of one chip.
      mesh: sizes by axis in the order in which devices are numbered; of TPUs within a slice.
      kernel: (custom call, its operands) -> (flops, bytes). Without it a kernel has no FLOPs, and moves its operands
        and results once.
      slices: number of TPU slices that run it; their exchanges are ``send`` instructions.
      hosts: number of hosts of GPUs that run it; their exchanges are a part of each collective between them.
    """
    network = [0.0, 0.0]
    tally = _Tally(mesh, hosts)
    pairs, kernels = [], defaultdict(float)
    for computation, i, times in program.executed():
        flops, moved = 0.0, float(traffic(program, computation, i))
        for owner, part in ((computation, i), *program.inside(i)):
            if part.opcode in ("dot", "convolution"):
                flops += product_flops(part, owner)
            elif part.opcode == "custom-call" and "__cublas$" in part.rest:
                flops += library_flops(part, owner)
            elif part.opcode.removesuffix("-start") in COLLECTIVES:
                tally.add(part, owner, times, fused=part is not i)
        if i.opcode == "send" and "megascale" in i.rest:
            network[0] += times * network_bytes(i, slices)
            network[1] += times
        for owner, part in ((computation, i), *program.inside(i)):  # on a GPU within a fusion that slices its operands
            if part.opcode == "custom-call" and ("tpu_custom_call" in part.rest or "mosaic_gpu" in part.rest):
                kernels[re.sub(r"[.\d]+$", "", part.name)] += times
                if kernel is not None:
                    operands = tuple(a for name in part.operands for a in owner.by_name[name].arrays)
                    flops, moved = kernel(part, operands)
        if flops or moved:
            pairs.append((flops * times, moved * times))
    flops, moved = (float(sum(pair[n] for pair in pairs)) for n in (0, 1))
    sent, exchanges = (inside + between for inside, between in zip(network, tally.network, strict=True))
    return Costs(flops, moved, tally.collectives(), tuple(pairs), dict(kernels), sent, exchanges)


def network_bytes(i: Instruction, slices: int) -> float:
    """Returns the bytes that one chip sends to other slices by a ``send``, whose first result is what is exchanged."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.rest)
    other = (slices - 1) / slices
    factor = {"ALL_REDUCE": 2 * other, "REDUCE_SCATTER": other, "ALL_GATHER": slices - 1.0, "ALL_TO_ALL": other}
    return i.arrays[0].bytes * factor.get(kind[1] if kind else "", 1.0)


class _Tally:
    """Adds up collectives by kind and axes."""

    def __init__(self, mesh: Mapping[str, int], hosts: int):
        self.mesh, self.hosts = mesh, hosts
        self.network = [0.0, 0.0]
        self.sums: dict[tuple[str, tuple[str, ...]], Collective] = {}
        self.channels: set[str] = set()

    def add(self, i: Instruction, owner: Computation, times: float, *, fused: bool) -> None:
        channel = re.search(r"channel_id=\d+", i.rest)
        if fused and channel is not None:
            # A collective that overlaps matmuls is in each of their fusions, on one channel.
            if channel[0] in self.channels:
                return
            self.channels.add(channel[0])
        groups = device_groups(i.rest, math.prod(self.mesh.values()))
        size = len(groups[0])
        if size == 1:
            return
        kind = _kind(i, owner, fused=fused)
        given = sum(owner.by_name[name].bytes for name in i.operands if name in owner.by_name)
        # The start of an asynchronous collective returns its operands beside its result.
        made = i.bytes - (given if i.opcode.endswith("-start") and kind != "all-reduce" else 0)
        fraction = (size - 1) / size
        whole = made if kind == "all-gather" else given
        sent = {"all-reduce": 2 * whole * fraction, "collective-permute": whole}.get(kind, whole * fraction)
        key = kind, axes_of(groups, self.mesh)
        before = self.sums.get(key, Collective(*key, 0.0, 0.0, 0.0, 0))
        self.sums[key] = Collective(
            *key,
            before.count + times,
            before.bytes + times * whole,
            before.sent + times * sent,
            max(before.largest, *(a.bytes for a in i.arrays)),
        )
        joined = len({device * self.hosts // math.prod(self.mesh.values()) for device in groups[0]})
        if joined > 1:
            # First among the devices of each host; then each exchanges its part with those of the other hosts.
            part = whole if kind == "collective-permute" else whole * joined / size * (joined - 1) / joined
            self.network[0] += times * part * (2 if kind == "all-reduce" else 1)
            self.network[1] += times

    def collectives(self) -> tuple[Collective, ...]:
        return tuple(self.sums[key] for key in sorted(self.sums))


def _kind(i: Instruction, owner: Computation, *, fused: bool) -> str:
    """Returns the kind of a collective. On TPUs a reduce-scatter is a fusion of an all-reduce and a slice."""
    kind = i.opcode.removesuffix("-start")
    if fused and kind == "all-reduce" and owner.root.opcode == "dynamic-slice":
        return "reduce-scatter"
    return kind


def product_flops(i: Instruction, owner: Computation) -> float:
    """Returns the FLOPs of a ``dot`` or ``convolution``, without those on padding."""
    left, right = (owner.by_name[name].arrays[0].dims for name in i.operands[:2])
    out = i.arrays[0].dims
    if i.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.rest)
        return (
            2.0
            * math.prod(out)
            * math.prod(left[int(d)] for d in (contracted[1] if contracted else "").split(",") if d)
        )
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
    assert labels is not None, "every convolution has dim_labels"
    of = lambda dims, names: dict(zip(names, dims, strict=True))
    left, right, out = of(left, labels[1]), of(right, labels[2]), of(out, labels[3])
    pairs = 1
    for axis, window in enumerate(_windows(i.rest, sum(label.isdigit() for label in labels[1]))):
        pairs *= _valid_pairs(left[str(axis)], right[str(axis)], out[str(axis)], window)
    return 2.0 * out["b"] * out["f"] * right["i"] * pairs


def library_flops(i: Instruction, owner: Computation) -> float:
    """Returns the FLOPs of a matrix product by cuBLAS, which a custom call names with the dimensions of its ``dot``."""
    contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', i.rest)
    assert contracted is not None, "every such call has the dimensions of its product"
    left = owner.by_name[i.operands[0]].arrays[0].dims
    return 2.0 * math.prod(i.arrays[0].dims) * math.prod(left[int(d)] for d in re.findall(r"\d+", contracted[1]))


def _windows(rest: str, axes: int) -> list[dict[str, tuple[int, ...]]]:
    """Returns for each spatial axis the stride, the low padding, and the dilation of the left and right operands."""
    text = re.search(r"window=\{([^}]*)\}", rest)
    given = dict(part.split("=") for part in text[1].split()) if text else {}
    windows = []
    for axis in range(axes):
        read = lambda name, default, axis=axis: given[name].split("x")[axis] if name in given else default
        windows.append(
            {
                "stride": (int(read("stride", "1")),),
                "pad": (int(read("pad", "0_0").split("_")[0]),),
                "dilate": (int(read("lhs_dilate", "1")), int(read("rhs_dilate", "1"))),
            }
        )
    return windows


def _valid_pairs(size: int, kernel: int, out: int, window: dict[str, tuple[int, ...]]) -> int:
    """Returns the number of pairs of an output and a kernel position that read an element, not padding."""
    spread, kernel_spread = window["dilate"]
    at = np.arange(out)[:, None] * window["stride"][0] + np.arange(kernel)[None] * kernel_spread - window["pad"][0]
    return int(((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)).sum())


def traffic(program: HloProgram, computation: Computation, i: Instruction) -> int:
    """Returns the bytes of main memory that an instruction reads and writes; a slice counts by its own size."""
    by_name = computation.by_name
    operands = [by_name[name] for name in i.operands if name in by_name]
    if i.opcode in _FREE or any(f'"{marker}"' in i.rest for marker in _MARKERS):
        return 0
    if i.opcode == "fusion":
        return _fusion_traffic(program, i, operands)
    if i.opcode in ("send", "recv"):  # results are the array, a number and a token
        return i.arrays[0].bytes
    if i.opcode in ("copy-start", "slice-start"):
        target = i.arrays[0].bytes
        return target * sum(a.space == 0 for a in i.arrays[:2])
    if i.opcode in ("dynamic-slice", "slice", "gather"):
        read = i.bytes if operands[0].main_bytes else 0
        return i.main_bytes + read + sum(o.main_bytes for o in operands[1:])
    if i.opcode == "dynamic-update-slice":
        return operands[1].main_bytes + (operands[1].bytes if i.main_bytes else 0)
    if i.opcode == "scatter":
        return sum(o.main_bytes for o in operands[1:]) + (2 * operands[-1].bytes if i.main_bytes else 0)
    return i.main_bytes + sum(o.main_bytes for o in operands)


def _fusion_traffic(program: HloProgram, i: Instruction, operands: list[Instruction]) -> int:
    fused = program.computations[i.attribute("calls")]
    moved = sum(min(_read_of(program, i, n), o.main_bytes) for n, o in enumerate(operands) if o.main_bytes)
    roots = [fused.by_name[name] for name in fused.root.operands] if fused.root.opcode == "tuple" else [fused.root]
    for array, root in zip(i.arrays, roots, strict=False):
        while root.opcode in ("bitcast", "reshape") and root.operands:
            root = fused.by_name[root.operands[0]]
        if root.opcode == "dynamic-update-slice":
            moved += fused.by_name[root.operands[1]].bytes if array.space == 0 else 0
        else:
            moved += array.bytes if array.space == 0 else 0
    return moved


def _read_of(program: HloProgram, fusion: Instruction, position: int) -> int:
    """Returns the bytes that a fusion reads of an operand: all, or the slices if it uses nothing else of it."""
    fused = program.computations[fusion.attribute("calls")]
    parameter = next(p for p in fused.instructions if p.opcode == "parameter" and int(p.inside) == position)
    total, pending = 0, [parameter.name]
    while pending:
        name = pending.pop()
        for user in fused.instructions:
            for index in (n for n, operand in enumerate(user.operands) if operand == name):
                if user.opcode in ("bitcast", "reshape"):
                    pending.append(user.name)
                elif user.opcode == "fusion":
                    total += _read_of(program, user, index)
                elif index == 0 and user.opcode in ("dynamic-slice", "slice", "gather"):
                    total += user.bytes
                elif index != 0 or user.opcode != "dynamic-update-slice":  # which writes in place
                    return parameter.bytes
    return total
