"""Knows GPUs: what a card can hold, compute and move, and the description by which XLA compiles for one elsewhere."""

import dataclasses

from jax.sharding import AbstractDevice

from deberta_jax.planning.chips import Chip


@dataclasses.dataclass(frozen=True)
class Card:
    """Holds the figures of one card, from its maker's data sheet.

    Attributes:
      kind: the name that a driver gives the device.
      capability: the compute capability, major and minor.
      chip: FLOP/s of the tensor cores without sparsity, memory as a driver reports it, and bandwidths.
      cores: number of multiprocessors.
      units: float32 units of a multiprocessor.
      threads: threads that a multiprocessor can hold.
      shared: bytes of shared memory of a multiprocessor; a block may use all but 1024.
      cache: bytes of the second level cache.
      clock: GHz.
    """

    kind: str
    capability: tuple[int, int]
    chip: Chip
    cores: int
    units: int
    threads: int
    shared: int
    cache: int
    clock: float


_MIB = 2**20
# NVLink of the third, fourth and fifth generation sends 300, 450 and 900 GB/s; an L4 has PCIe 4.0 with 16 lanes.
# Network: one adapter a card as in the makers' reference hosts (200 or 400 Gbit/s); for L4 a 100 Gbit/s host of eight.
_A100 = (108, 64, 2048, 167936, 40 * _MIB, 1.41)
_HOPPER = (132, 128, 2048, 233472, 50 * _MIB, 1.98)
CARDS = {
    "a100-40": Card("NVIDIA A100-SXM4-40GB", (8, 0), Chip(312e12, 40960 * _MIB, 1.555e12, 300e9, 25e9), *_A100),
    "a100-80": Card("NVIDIA A100-SXM4-80GB", (8, 0), Chip(312e12, 81920 * _MIB, 2.039e12, 300e9, 25e9), *_A100),
    "l4": Card(
        "NVIDIA L4", (8, 9), Chip(121e12, 23034 * _MIB, 0.3e12, 32e9, 1.5e9), 58, 128, 1536, 102400, 48 * _MIB, 2.04
    ),
    "h100": Card("NVIDIA H100 80GB HBM3", (9, 0), Chip(989e12, 81559 * _MIB, 3.35e12, 450e9, 50e9), *_HOPPER),
    "h200": Card("NVIDIA H200", (9, 0), Chip(989e12, 143771 * _MIB, 4.8e12, 450e9, 50e9), *_HOPPER),
    "b200": Card(
        "NVIDIA B200",
        (10, 0),
        Chip(2250e12, 183359 * _MIB, 8e12, 900e9, 50e9),
        148,
        128,
        2048,
        233472,
        126 * _MIB,
        1.965,
    ),
}


@dataclasses.dataclass(frozen=True)
class CardDevice(AbstractDevice):
    """Describes a card for Pallas, which takes a device without a compute capability for a Hopper.

    Attributes:
      compute_capability: as ``jax.Device`` has it, such as 8.0.
    """

    compute_capability: str = ""


def card_device(card: Card) -> CardDevice:
    """Returns the device of a mesh of such cards that are not there."""
    capability = ".".join(map(str, card.capability))
    return CardDevice(device_kind=card.kind, num_cores=card.cores, platform="gpu", compute_capability=capability)


def target_config(card: Card) -> str:
    """Returns XLA's description of a card: a GpuTargetConfigProto as text."""
    major, minor = card.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {card.shared}
  threads_per_core_limit: {card.threads}
  core_count: {card.cores}
  fpus_per_core: {card.units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {round(card.chip.hbm_bandwidth)}
  l2_cache_size: {card.cache}
  clock_rate_ghz: {card.clock}
  device_memory_size: {card.chip.hbm}
  shared_memory_per_block_optin: {card.shared - 1024}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  driver_version: "13.0.0"
  runtime_version: "12.9.0"
  compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.10.0"
  name: "{card.kind}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{card.kind}"
"""
