"""Chooses which blocks of which arrays each program of a TPU kernel receives, and which programs have no work.

Arrays are in the layout of ``pallas.layout``; logsumexp is float32 [B,groups,group,L]. Programs are numbered (group,
example, outer block, inner block).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Int

from deberta_jax.ops.attention.pallas import layout
from deberta_jax.ops.attention.pallas.tiling import Tiling
from deberta_jax.ops.products import F32


@dataclasses.dataclass(frozen=True)
class GridOrder:
    """Tells which side's blocks change in the inner loop of the grid: those of the keys if queries are outer."""

    query_outer: bool

    def blocks(self, outer: Any, inner: Any) -> tuple[Any, Any]:
        """Returns (query block, key block)."""
        return (outer, inner) if self.query_outer else (inner, outer)


QUERY_MAJOR, KEY_MAJOR = GridOrder(query_outer=True), GridOrder(query_outer=False)


def schedule(
    tiling: Tiling, segment_ids: Int[Array, "B L"] | None, attention_mask: Bool[Array, "B L L"] | None, order: GridOrder
) -> Int[Array, " P"]:
    """Returns for each program 2 * (inner block to fetch) + (1 if it has work): int32 [B * blocks * blocks].

    A program whose queries may attend to none of its keys does no work, and keeps the block that its neighbour fetched.
    """
    if segment_ids is None and attention_mask is None:
        return jnp.zeros((1,), jnp.int32)
    mask = layout.block_mask(tiling, segment_ids, attention_mask)
    mask = mask if order.query_outer else mask.swapaxes(1, 2)
    inner = jnp.arange(tiling.blocks, dtype=jnp.int32)[None, None]
    latest = lax.cummax(jnp.where(mask, inner, -1), axis=2)
    first = jnp.argmax(mask, axis=2).astype(jnp.int32)[..., None]
    return (2 * jnp.where(latest < 0, first, latest) + mask).reshape(-1)


def _step(tiling: Tiling, steps: Any, example: Any, outer: Any, inner: Any) -> Any:
    return steps[(example * tiling.blocks + outer) * tiling.blocks + inner]


def has_work(tiling: Tiling, steps: Any, refs: dict[str, Any], example: Any, outer: Any, inner: Any) -> Any:
    """Returns whether a program has any work."""
    if "query_segment_ids" not in refs and "attention_mask" not in refs:
        return inner >= 0
    return (_step(tiling, steps, example, outer, inner) & 1) == 1


def _index_map(tiling: Tiling, masked: bool, order: GridOrder, select: Callable) -> Callable:
    """Returns an index map from ``select``, which receives (group, example, query block, key block)."""

    def index(group, example, outer, inner, steps, seeds):
        fetched = _step(tiling, steps, example, outer, inner) >> 1 if masked else inner
        return select(group, example, *order.blocks(outer, fetched))

    return index


def input_blocks(
    tiling: Tiling, arrays: dict[str, Any], order: GridOrder
) -> tuple[tuple[str, ...], tuple[pl.BlockSpec, ...], tuple[Any, ...]]:
    """Returns names, block specs and arrays of a kernel's inputs, those that are given."""
    at = functools.partial(_index_map, tiling, "segment_ids" in arrays or "attention_mask" in arrays, order)
    size, lanes = tiling.block_size, tiling.lanes
    low, high = tiling.near
    by_query = pl.BlockSpec((1, size, lanes), at(lambda g, b, i, j: (b, i, g)))
    by_key = pl.BlockSpec((1, size, lanes), at(lambda g, b, i, j: (b, j, g)))
    window = (pl.Element(2 * size), pl.Element(lanes))
    offset = lambda i, j: jnp.clip(j - i, low, high)
    specs = {
        "query": by_query,
        "key": by_key,
        "value": by_key,
        "table_key": pl.BlockSpec(window, at(lambda g, b, i, j: ((offset(i, j) - low) * size, g * lanes))),
        "table_query": pl.BlockSpec(window, at(lambda g, b, i, j: ((high - offset(i, j)) * size, g * lanes))),
        "query_segment_ids": pl.BlockSpec((1, 1, size), at(lambda g, b, i, j: (b, 0, i))),
        "key_segment_ids": pl.BlockSpec((1, 1, size), at(lambda g, b, i, j: (b, 0, j))),
        "attention_mask": pl.BlockSpec((1, size, size), at(lambda g, b, i, j: (b, i, j))),
        "context": by_query,
        "cotangent": by_query,
        "logsumexp": pl.BlockSpec((1, 1, tiling.group, size), at(lambda g, b, i, j: (b, g, 0, i))),
    }
    given = dict(arrays)
    segment_ids = given.pop("segment_ids", None)
    if segment_ids is not None:
        given |= {"query_segment_ids": segment_ids, "key_segment_ids": segment_ids}
    names = tuple(name for name in specs if name in given)
    return names, tuple(specs[name] for name in names), tuple(given[name] for name in names)


def outer_block(tiling: Tiling) -> pl.BlockSpec:
    """Returns the spec of an output with a block for each outer block."""
    return pl.BlockSpec((1, tiling.block_size, tiling.lanes), lambda g, b, outer, inner, *_: (b, outer, g))


def has_position(arrays: dict[str, Any]) -> bool:
    """Returns whether the scores have a position term."""
    return "table_key" in arrays or "table_query" in arrays


def position_scratch(tiling: Tiling, arrays: dict[str, Any]) -> dict[str, Any]:
    """Returns the scratch memory for the position scores of a pair of blocks, if there are any."""
    shape = (tiling.block_size, tiling.block_size)
    return {"position_scores": pltpu.VMEM(shape, F32)} if has_position(arrays) else {}


def vmem_limit(tiling: Tiling, dtype: Any, *, backward: bool) -> int:
    """Returns the bytes of on-chip memory to request: buffers (twice, as they are prefetched), scratch, and spills."""
    block, table = tiling.block_size * tiling.lanes, tiling.table_rows * tiling.lanes
    item = jnp.dtype(dtype).itemsize
    window = 2 * 2 * block
    square = tiling.block_size * tiling.block_size
    if not backward:
        need = 2 * item * (4 * block + window) + 4 * (block + square + 2 * tiling.group * tiling.block_size * 128)
    else:
        whole = tiling.padded_length * tiling.lanes
        need = 2 * item * (7 * block + window + whole) + 4 * (2 * block + square + whole) + 2 * 2 * 4 * table
    return need + 2 * square + (16 << 20)
