"""Knows TPU chips and slices: what a chip can hold, compute and move, and which slices there are."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Holds the figures of one chip or GPU.

    Attributes:
      flops: bfloat16 FLOP/s.
      hbm: bytes of memory.
      hbm_bandwidth: bytes a second from and to memory.
      ring_bandwidth: bytes a second that it sends in a ring: on TPUs through the two links along one direction of the
        torus, on GPUs through the links to the others of its host.
      network_bandwidth: its share of the data-centre network between slices or hosts, in bytes a second.
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
CORES = {"v4": 2, "v5p": 2}
