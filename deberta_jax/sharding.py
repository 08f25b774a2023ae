"""Where arrays live: the mesh, the rules from logical axes to mesh axes, and host batches made global.

Models name the axes of their arrays (``batch length embed heads kv mlp vocab relpos layers``); one frozen
``ShardingRules`` says which mesh axes each is split over. ``jax.jit`` with shardings does the rest (it is pjit).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deberta_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")
MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """For each logical axis the mesh axis, or axes, it is split over; None keeps it whole on every device.

    The batch is split over ``data`` and ``fsdp``; parameters over ``fsdp`` (one dimension, gathered when used) and
    over ``tensor`` (heads, feed-forward and vocabulary). ``replica`` is a batch whose arrays are split like parameters:
    over ``data`` alone.
    """

    batch: MeshAxes = ("data", "fsdp")
    replica: MeshAxes = "data"
    length: MeshAxes = None
    embed: MeshAxes = "fsdp"
    heads: MeshAxes = "tensor"
    kv: MeshAxes = None
    mlp: MeshAxes = "tensor"
    vocab: MeshAxes = "tensor"
    relpos: MeshAxes = None
    layers: MeshAxes = None

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """The PartitionSpec of an array whose dimensions bear these logical names."""
        return PartitionSpec(*(None if axis is None else getattr(self, axis) for axis in axes))


RULES = ShardingRules()


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh ``(data, fsdp, tensor)`` over ``devices`` (all by default); one size may be -1: whatever is left.

    Raises:
      InputError: sizes that do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    free = [name for name, size in sizes.items() if size == -1]
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()) or (free and len(devices) % fixed):
        raise InputError(f"mesh {sizes} does not fit {len(devices)} devices; sizes must multiply to that number")
    if free:
        sizes[free[0]] = len(devices) // fixed
    if int(np.prod(list(sizes.values()))) != len(devices):
        raise InputError(f"mesh {sizes} does not fit {len(devices)} devices; sizes must multiply to that number")
    shape, types = tuple(sizes.values()), (AxisType.Auto,) * len(MESH_AXES)
    try:
        return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)
    except NotImplementedError:
        # An axis of 8 on a torus of 4x4x4 takes half of one of its axes, which JAX by itself does on v5e alone.
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(grid, MESH_AXES, axis_types=types)


def tree_shardings(axes_tree: Any, mesh: Mesh, rules: ShardingRules = RULES) -> Any:
    """NamedShardings for a tree of axis-name tuples, such as ``models.logical_axes`` gives."""
    return jax.tree.map(
        lambda axes: NamedSharding(mesh, rules.spec(axes)), axes_tree, is_leaf=lambda leaf: isinstance(leaf, tuple)
    )


def batch_sharding(mesh: Mesh, rules: ShardingRules = RULES) -> NamedSharding:
    """The sharding of a batch: the leading dimension split, everything else whole."""
    return NamedSharding(mesh, rules.spec(("batch",)))


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, rules: ShardingRules = RULES) -> dict[str, jax.Array]:
    """This process's rows of a batch -> global arrays, each row on the device that owns it."""
    sharding = batch_sharding(mesh, rules)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def constrain(x: jax.Array, axes: Sequence[str | None], rules: ShardingRules = RULES) -> jax.Array:
    """Fixes the sharding of an activation where a mesh is set (``jax.set_mesh``); elsewhere returns it as it is."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, rules.spec(axes))


@dataclasses.dataclass(frozen=True)
class RowShare:
    """The rows of a batch that one process reads: those of ``blocks`` out of ``count`` equal parts."""

    blocks: tuple[int, ...] = (0,)
    count: int = 1

    def rows(self, total: int) -> np.ndarray:
        """Their indices, ascending; ``total`` must be a multiple of ``count``."""
        size = total // self.count
        return (np.asarray(self.blocks)[:, None] * size + np.arange(size)).ravel()


WHOLE = RowShare()
"""All rows: the share of a process that is alone."""


def row_share(mesh: Mesh) -> RowShare:
    """What this process's devices hold of every batch."""
    count = mesh.shape["data"] * mesh.shape["fsdp"]
    index = batch_sharding(mesh).addressable_devices_indices_map((count,))
    blocks = {range(count)[rows[0]][0] for rows in index.values() if rows is not None}
    return RowShare(tuple(sorted(blocks)), count)
