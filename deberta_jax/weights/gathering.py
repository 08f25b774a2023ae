"""Brings parameters that are sharded over several processes to the process that writes them."""

import functools
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

_LARGEST_BLOCK = 128 << 20


def on_first_process(tree: Any) -> Any:
    """Returns a tree of numpy arrays on the first process, gathered from all processes. All must call.

    Leaves are gathered in blocks, one after the other and in the same order on all processes. The other processes hold
    no more than a block, and get arrays of the same shapes that take no memory.
    """
    return tree if jax.process_count() == 1 else jax.tree.map(_gather, tree)


def _gather(leaf: Any) -> np.ndarray:
    first = jax.process_index() == 0
    out = np.empty(leaf.shape, leaf.dtype) if first else np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf) if first else out
    sharding, axis = leaf.sharding, _free_axis(leaf)
    if axis is None or not isinstance(sharding, NamedSharding):  # every axis is split over devices
        whole = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(whole) if first else out
    length = leaf.shape[axis]
    size = max(1, min(length, length * _LARGEST_BLOCK // max(leaf.nbytes, 1)))
    for start in range(0, length, size):
        start = min(start, length - size)  # the last block overlaps the one before, so that all have one shape
        block = _block_everywhere(leaf, np.int32(start), size, axis, sharding.mesh)
        if first:
            out[(slice(None),) * axis + (slice(start, start + size),)] = np.asarray(block.addressable_data(0))
    return out


def _free_axis(leaf: jax.Array) -> int | None:
    """Returns the longest axis that is not split over devices; None if there is none."""
    whole = leaf.sharding.shard_shape(leaf.shape)
    free = [axis for axis, size in enumerate(leaf.shape) if whole[axis] == size]
    return max(free, key=lambda axis: leaf.shape[axis], default=None)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _block_everywhere(leaf: jax.Array, start: Any, size: int, axis: int, mesh: Any) -> jax.Array:
    """Returns ``size`` consecutive positions of an axis, copied to every device."""
    block = jax.lax.dynamic_slice_in_dim(leaf, start, size, axis)
    return jax.lax.with_sharding_constraint(block, NamedSharding(mesh, PartitionSpec()))
