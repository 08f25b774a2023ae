"""Defines meshes, the rules from logical axes to mesh axes, and global arrays of batches.

Models name the axes of their arrays (``batch length embed heads kv mlp vocab relpos layers``). A frozen
``ShardingRules`` says over which mesh axes each of them is split. ``jax.jit`` with these shardings partitions the
computation.
"""

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from deberta_jax.errors import InputError

__all__ = [
    "MESH_AXES",
    "ShardingRules",
    "batch_sharding",
    "constrain",
    "current_mesh",
    "global_batch",
    "make_mesh",
    "replicated",
    "tree_shardings",
    "use",
]

MESH_AXES = ("data", "fsdp", "tensor")
"""Lists the axes of every mesh: ``data`` (copies of the model), ``fsdp`` (parts of all parameters) and ``tensor``."""
MeshAxes = str | tuple[str, ...] | None
Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Maps each logical axis to the mesh axes over which it is split; None does not split it.

    The batch is split over ``data`` and ``fsdp``. Parameters are split over ``fsdp`` (one axis, gathered when it is
    used) and ``tensor`` (heads, feed-forward and vocabulary). ``replica`` is the batch axis of arrays whose other axes
    are split like parameters; it is split over ``data`` only.
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
        """Returns the PartitionSpec of an array with these logical axes; None is an axis that is not split."""
        return PartitionSpec(*(None if axis is None else getattr(self, axis) for axis in axes))


RULES = ShardingRules()


@functools.cache
def _first_user() -> int:
    """Returns the id of the process that called this first. A process that is forked later inherits the answer."""
    return os.getpid()


def check_not_forked() -> None:
    """Checks that this process was not forked from one that has used JAX, whose threads it lacks.

    Its computations would wait for ever. It is called before a model is loaded or applied.

    Raises:
      InputError: it was.
    """
    if _first_user() != os.getpid():
        raise InputError(
            "this process was forked from one that uses JAX, so its computations would never end; start it with "
            "multiprocessing.get_context('spawn'), or load models only in the forked processes"
        )


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Makes a mesh with the axes ``(data, fsdp, tensor)``.

    TPU slices that a data-centre network joins are the outer part of ``data``: ``fsdp`` and ``tensor`` stay within a
    slice.

    Args:
      data, fsdp, tensor: sizes of the axes; one may be -1, which uses the remaining devices.
      devices: the devices; None: all.

    Raises:
      InputError: the product of the sizes is not the number of devices; ``data`` is no multiple of the number of
        slices; or this process was forked from one that uses JAX.
    """
    check_not_forked()
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()) or (free and len(devices) % fixed):
        raise InputError(f"mesh {sizes} does not fit {len(devices)} devices; sizes must multiply to that number")
    if free:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise InputError(f"mesh {sizes} does not fit {len(devices)} devices; sizes must multiply to that number")
    shape, types = tuple(sizes.values()), (AxisType.Auto,) * len(MESH_AXES)
    # Descriptions of a single slice whose devices are not here have no number of their slice.
    tpu = devices[0].platform == "tpu"
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if tpu else 1
    if slices > 1:
        return Mesh(_grid_of_slices(sizes, slices, devices), MESH_AXES, axis_types=types)
    try:
        return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)
    except NotImplementedError:
        # An axis of size 8 on a 4x4x4 torus uses half of one of its axes. By default JAX allows that only on v5e.
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(grid, MESH_AXES, axis_types=types)


def _grid_of_slices(sizes: Mapping[str, int], slices: int, devices: Sequence[Any]) -> np.ndarray:
    """Returns the devices of several slices as an array with the mesh's axes; slices are the outer part of ``data``."""
    if sizes["data"] % slices:
        raise InputError(
            f"mesh {dict(sizes)}: data must be a multiple of the {slices} slices, because fsdp and tensor stay within "
            f"a slice; each slice has {len(devices) // slices} devices"
        )
    inside = (sizes["data"] // slices, sizes["fsdp"], sizes["tensor"])
    try:
        return mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices)
    except NotImplementedError:  # as for one slice
        return mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices, allow_split_physical_axes=True)


@contextlib.contextmanager
def use(mesh: Mesh) -> Iterator[Mesh]:
    """Uses a mesh inside a ``with`` block: batches, parameters and optimizer states made there are sharded over it.

    ``training.parameter_shardings``, ``training.batches`` and ``global_batch`` read it, and models constrain their
    activations to it.

    Raises:
      InputError: the mesh has other axes than ``MESH_AXES``; ``make_mesh`` makes one that has them.
    """
    if mesh.axis_names != MESH_AXES:
        raise InputError(f"the mesh has the axes {mesh.axis_names}; make one with sharding.make_mesh, {MESH_AXES}")
    with jax.set_mesh(mesh):
        yield mesh


def current_mesh() -> Mesh | None:
    """Returns the mesh of the innermost ``use`` (or ``jax.set_mesh``); None if there is none."""
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else mesh


def tree_shardings(axes_tree: Any, mesh: Mesh, rules: ShardingRules = RULES) -> Any:
    """Returns the NamedShardings for a tree of tuples of logical axes, such as the one of ``models.logical_axes``."""
    return jax.tree.map(
        lambda axes: NamedSharding(mesh, rules.spec(axes)), axes_tree, is_leaf=lambda leaf: isinstance(leaf, tuple)
    )


def batch_sharding(mesh: Mesh, rules: ShardingRules = RULES) -> NamedSharding:
    """Returns the sharding of a batch: only the first axis is split."""
    return NamedSharding(mesh, rules.spec(("batch",)))


def global_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh | None = None, rules: ShardingRules = RULES
) -> dict[str, jax.Array]:
    """Makes global arrays of the rows of a batch that this process has; each row goes to the device that owns it.

    Args:
      batch: arrays [B, ...].
      mesh: None: the one of ``use``; without one the arrays go to the first device.
    """
    mesh = current_mesh() if mesh is None else mesh
    if mesh is None:
        return {name: jax.device_put(value) for name, value in batch.items()}
    sharding = batch_sharding(mesh, rules)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def constrain(x: jax.Array, axes: Sequence[str | None], rules: ShardingRules = RULES) -> jax.Array:
    """Constrains the sharding of an activation if a mesh is set (``jax.set_mesh``); otherwise returns it unchanged."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, rules.spec(axes))


@dataclasses.dataclass(frozen=True)
class RowShare:
    """Says which rows of a batch one process reads: those in ``blocks`` of ``count`` equal blocks."""

    blocks: tuple[int, ...] = (0,)
    count: int = 1

    def rows(self, total: int) -> np.ndarray:
        """Returns the indices of the rows, ascending: int64 [n].

        Args:
          total: rows of the batch, a multiple of ``count``.
        """
        size = total // self.count
        return (np.asarray(self.blocks)[:, None] * size + np.arange(size)).ravel()


WHOLE = RowShare()
"""All rows, for a run with one process."""


def sharded(shape: Sequence[int], sharding: Sharding, read: Callable[[Index], np.ndarray]) -> jax.Array:
    """Makes a global array of which each process reads the parts that its own devices hold.

    ``jax.device_put`` would first sum the whole array on all devices, to check that all processes have the same.

    Args:
      shape: shape of the whole array.
      sharding: how it is split over devices, which may belong to other processes too.
      read: returns the part of the array at an index with one slice for each axis. It is called once, for the smallest
        block that has all parts of this process.
    """
    shape = tuple(shape)
    parts = [_ranges(shape, index) for index in sharding.addressable_devices_indices_map(shape).values()]
    starts = [min(part[axis].start for part in parts) for axis in range(len(shape))]
    stops = [max(part[axis].stop for part in parts) for axis in range(len(shape))]
    block = read(tuple(map(slice, starts, stops)))
    shifted = lambda index: tuple(
        slice(r.start - s, r.stop - s) for r, s in zip(_ranges(shape, index), starts, strict=True)
    )
    return jax.make_array_from_callback(shape, sharding, lambda index: block[shifted(index)])


def _ranges(shape: tuple[int, ...], index: Index | None) -> list[range]:
    return [range(size)[part] for size, part in zip(shape, index or (slice(None),) * len(shape), strict=True)]


def replicated(tree: Any, mesh: Mesh) -> Any:
    """Returns a tree of arrays with a copy of each on every device of a mesh. Every process has the same tree."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    if everywhere.is_fully_addressable:
        return jax.device_put(tree, everywhere)
    return jax.tree.map(lambda leaf: sharded(np.shape(leaf), everywhere, np.asarray(leaf).__getitem__), tree)


def row_share(mesh: Mesh) -> RowShare:
    """Returns the rows of a batch that the devices of this process hold."""
    count = mesh.shape["data"] * mesh.shape["fsdp"]
    index = batch_sharding(mesh).addressable_devices_indices_map((count,))
    blocks = {range(count)[rows[0]][0] for rows in index.values() if rows is not None}
    return RowShare(tuple(sorted(blocks)), count)
