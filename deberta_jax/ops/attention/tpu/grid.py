"""Chooses which blocks of which arrays each program of a TPU kernel receives, which have no work, and runs a kernel.

Arrays are in the layout of ``pallas.layout``; logsumexp and delta are float32 [B,groups,group,L], transposed tables
and their gradients [U/128,W,128], tile by tile. Programs are numbered (group, rows of the batch, outer block, inner
block).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Int

from deberta_jax.ops.attention.pallas import layout
from deberta_jax.ops.attention.pallas.tiling import TILE, Tiling
from deberta_jax.ops.attention.tpu.words import Words
from deberta_jax.ops.products import F32

# The position terms, p2c and c2p: the side whose tokens meet a table, and the table.
TERMS = (("key", "table_query"), ("query", "table_key"))
ROWS = 4  # of the batch in a program, if they have one strip each
VMEM_BYTES = 64 << 20  # on-chip memory that a program may use, unless its arrays need more


@dataclasses.dataclass(frozen=True)
class GridOrder:
    """Tells which side's blocks change in the inner loop of the grid: those of the keys if queries are outer."""

    query_outer: bool

    def blocks(self, outer: Any, inner: Any) -> tuple[Any, Any]:
        """Returns (query block, key block)."""
        return (outer, inner) if self.query_outer else (inner, outer)


QUERY_MAJOR, KEY_MAJOR = GridOrder(query_outer=True), GridOrder(query_outer=False)


@dataclasses.dataclass(frozen=True)
class Program:
    """Holds what the code of one program of a kernel reads and writes.

    Attributes:
      tiling: of the kernel.
      held: which heads share words.
      rows: rows of the batch; 1 with several blocks.
      refs: blocks of arrays and scratch memory, by name.
      steps, seeds, norms: the schedule, the seeds of dropout, and the norms of the tables, all as scalars.
      group, first_row: number of the group of heads, and of the first row of the batch.
      last_row: the first row of the last program.
      query_block, key_block: numbers of the blocks.
      is_far: whether all distances between the blocks read one row of each table.
    """

    tiling: Tiling
    held: Words
    rows: int
    refs: dict[str, Any]
    steps: Any
    seeds: Any
    norms: Any
    group: Any
    first_row: Any
    last_row: int
    query_block: Any
    key_block: Any
    is_far: bool = False

    @property
    def terms(self) -> list[tuple[str, str]]:
        """Returns those of ``TERMS`` whose table is given, as it is or transposed."""
        return [(side, table) for side, table in TERMS if {table, f"{table}_transposed"} & self.refs.keys()]

    @property
    def uses_words(self) -> bool:
        """Returns whether position scores come from words: those of near blocks."""
        return bool(self.terms) and not self.is_far

    def when_it_has_work(self, order: GridOrder, work: Callable[["Program"], None]) -> None:
        """Calls ``work`` with this program, or with that of far blocks, unless no query may attend to any key."""
        if self.tiling.blocks == 1:  # a row without any pair is seldom
            work(self)
            return
        outer, inner = order.blocks(self.query_block, self.key_block)
        masked = "query_segment_ids" in self.refs or "attention_mask" in self.refs
        active = (_step(self.tiling, self.steps, self.first_row, outer, inner) & 1) == 1 if masked else inner >= 0
        offset = self.key_block - self.query_block
        is_far = (offset <= self.tiling.far[0]) | (offset >= self.tiling.far[1])

        @pl.when(active)
        def _():
            if not (self.tiling.has_far and self.terms):
                work(self)
                return
            pl.when(is_far)(lambda: work(dataclasses.replace(self, is_far=True)))
            pl.when(jnp.logical_not(is_far))(lambda: work(self))


def rows_of_program(tiling: Tiling, batch: int) -> int:
    """Returns the rows of the batch that a program handles: a divisor of ``batch``."""
    most = max(1, ROWS // tiling.strips) if tiling.blocks == 1 else 1
    return next(count for count in range(min(most, batch), 0, -1) if batch % count == 0)


def schedule(
    tiling: Tiling, segment_ids: Int[Array, "B L"] | None, attention_mask: Bool[Array, "B L L"] | None, order: GridOrder
) -> Int[Array, " P"]:
    """Returns for each program 2 * (inner block to fetch) + (1 if it has work): int32 [B * blocks * blocks].

    A program whose queries may attend to none of its keys does no work, and keeps the block that its neighbour fetched.
    """
    if (segment_ids is None and attention_mask is None) or tiling.blocks == 1:
        return jnp.zeros((1,), jnp.int32)
    mask = layout.block_mask(tiling, segment_ids, attention_mask)
    mask = mask if order.query_outer else mask.swapaxes(1, 2)
    inner = jnp.arange(tiling.blocks, dtype=jnp.int32)[None, None]
    latest = lax.cummax(jnp.where(mask, inner, -1), axis=2)
    first = jnp.argmax(mask, axis=2).astype(jnp.int32)[..., None]
    return (2 * jnp.where(latest < 0, first, latest) + mask).reshape(-1)


def _step(tiling: Tiling, steps: Any, row: Any, outer: Any, inner: Any) -> Any:
    return steps[(row * tiling.blocks + outer) * tiling.blocks + inner]


def _index_map(tiling: Tiling, masked: bool, order: GridOrder, select: Callable) -> Callable:
    """Returns an index map from ``select``, which receives (group, rows, query block, key block)."""

    def index(group, row, outer, inner, steps, *_):
        fetched = _step(tiling, steps, row, outer, inner) >> 1 if masked else inner
        return select(group, row, *order.blocks(outer, fetched))

    return index


def input_blocks(
    tiling: Tiling, arrays: dict[str, Any], order: GridOrder
) -> tuple[tuple[str, ...], tuple[pl.BlockSpec, ...], tuple[Any, ...]]:
    """Returns names, block specs and arrays of a kernel's inputs, those that are given."""
    masked = tiling.blocks > 1 and ("segment_ids" in arrays or "attention_mask" in arrays)
    at = functools.partial(_index_map, tiling, masked, order)
    rows, size, lanes = rows_of_program(tiling, arrays["query"].shape[0]), tiling.block_size, tiling.lanes
    low, high = tiling.near
    by_query = pl.BlockSpec((rows, size, lanes), at(lambda g, b, i, j: (b, i, g)))
    by_key = pl.BlockSpec((rows, size, lanes), at(lambda g, b, i, j: (b, j, g)))
    number_by_query = pl.BlockSpec((rows, 1, tiling.group, size), at(lambda g, b, i, j: (b, g, 0, i)))
    window = (pl.Element(2 * size), pl.Element(lanes))
    tiles = (pl.Element(2 * tiling.strips), pl.Element(lanes), pl.Element(TILE))
    # Which window of each table a pair of blocks meets.
    of_key_table = lambda i, j: jnp.clip(j - i, low, high) - low
    of_query_table = lambda i, j: high - jnp.clip(j - i, low, high)
    specs = {
        "query": by_query,
        "key": by_key,
        "value": by_key,
        "table_key": pl.BlockSpec(window, at(lambda g, b, i, j: (of_key_table(i, j) * size, g * lanes))),
        "table_query": pl.BlockSpec(window, at(lambda g, b, i, j: (of_query_table(i, j) * size, g * lanes))),
        "table_key_transposed": pl.BlockSpec(
            tiles, at(lambda g, b, i, j: (of_key_table(i, j) * tiling.strips, g * lanes, 0))
        ),
        "table_query_transposed": pl.BlockSpec(
            tiles, at(lambda g, b, i, j: (of_query_table(i, j) * tiling.strips, g * lanes, 0))
        ),
        "query_segment_ids": pl.BlockSpec((rows, 1, size), at(lambda g, b, i, j: (b, 0, i))),
        "key_segment_ids": pl.BlockSpec((rows, 1, size), at(lambda g, b, i, j: (b, 0, j))),
        "attention_mask": pl.BlockSpec((rows, size, size), at(lambda g, b, i, j: (b, i, j))),
        "cotangent": by_query,
        "logsumexp": number_by_query,
        "delta": number_by_query,
    }
    given = dict(arrays)
    segment_ids = given.pop("segment_ids", None)
    if segment_ids is not None:
        given |= {"query_segment_ids": segment_ids, "key_segment_ids": segment_ids}
    names = tuple(name for name in specs if name in given)
    return names, tuple(specs[name] for name in names), tuple(given[name] for name in names)


def shared_scratch(tiling: Tiling, arrays: dict[str, Any], held: Words) -> dict[str, Any]:
    """Returns the scratch memory for masks, and for words of position scores and what they need, as far as given."""
    rows, size = rows_of_program(tiling, arrays["query"].shape[0]), tiling.block_size
    scratch = {}
    if "segment_ids" in arrays:
        scratch["key_ids"] = pltpu.VMEM((rows, 1, size), jnp.int32)
    sides = [side for side, table in TERMS if {table, f"{table}_transposed"} & arrays.keys()]
    for side in sides:
        scratch[f"{side}_words"] = pltpu.VMEM((rows, held.count, size, size), held.dtype)
    if sides and held.shared > 1:
        scratch["units"] = pltpu.VMEM((rows, 8 * tiling.group, TILE), F32)
        scratch["queries"] = pltpu.VMEM((rows, tiling.group, size, tiling.lanes), arrays["query"].dtype)
    return scratch


def call(
    name: str,
    kernel: Callable[[Program], None],
    tiling: Tiling,
    held: Words,
    arrays: dict[str, jax.Array],
    outputs: dict[str, tuple[pl.BlockSpec, jax.ShapeDtypeStruct]],
    scratch: dict[str, Any],
    scalars: tuple[jax.Array, ...],
    order: GridOrder,
    interpret: Any,
) -> dict[str, jax.Array]:
    """Runs ``kernel`` and returns its outputs by name.

    Args:
      arrays: inputs, by the names of ``input_blocks``; segment_ids is the input of both sides.
      outputs: their blocks and shapes.
      scalars: the schedule, the seeds, and the norms of the tables.
    """
    batch = arrays["query"].shape[0]
    rows = rows_of_program(tiling, batch)
    names, specs, values = input_blocks(tiling, arrays, order)

    def body(steps, seeds, norms, *given):
        refs = dict(zip((*names, *outputs, *scratch), given, strict=True))
        group, step, outer, inner = (pl.program_id(axis) for axis in range(4))
        blocks = order.blocks(outer, inner) if tiling.blocks > 1 else (0, 0)
        kernel(Program(tiling, held, rows, refs, steps, seeds, norms, group, step * rows, batch - rows, *blocks))

    # Programs of the backward add to one another's outputs, so that their order counts.
    sums = "parallel" if order.query_outer else "arbitrary"
    results = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(tiling.groups, batch // rows, tiling.blocks, tiling.blocks),
            in_specs=specs,
            out_specs=tuple(spec for spec, _ in outputs.values()),
            scratch_shapes=tuple(scratch.values()),
        ),
        out_shape=tuple(shape for _, shape in outputs.values()),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", sums, sums, "arbitrary"),
            vmem_limit_bytes=_vmem_limit(tiling, arrays, outputs, scratch),
        ),
        interpret=interpret,
        name=name,
    )(*scalars, *values)
    return dict(zip(outputs, results, strict=True))


def _vmem_limit(tiling: Tiling, arrays: dict[str, Any], outputs: dict[str, Any], scratch: dict[str, Any]) -> int:
    """Returns the bytes of on-chip memory to request: blocks (twice, as they are moved ahead), scratch, and spills."""
    sides = lambda shape: [getattr(side, "block_size", side) for side in shape]
    size = lambda shape, dtype: functools.reduce(lambda a, b: a * b, sides(shape)) * jnp.dtype(dtype).itemsize
    _, specs, values = input_blocks(tiling, arrays, QUERY_MAJOR)
    moved = sum(size(spec.block_shape, a.dtype) for spec, a in zip(specs, values, strict=True))
    moved += sum(size(spec.block_shape, a.dtype) for spec, a in outputs.values())
    return max(VMEM_BYTES, 2 * moved + sum(size(s.shape, s.dtype) for s in scratch.values()) + (16 << 20))
