"""Which blocks of which arrays a program of the kernels receives, and which programs have nothing to do.

Arrays as the kernels take them, L the padded length, U the rows of the tables, NH heads times head size, padded:
query, key, value and the like [B,L,NH]; tables [U,NH]; texts int32 [B,1,L]; pairs int8 [B,L,L]; logsum float32
[B,groups,group,L]. Programs are numbered (group, example, outer block, inner block).
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
from deberta_jax.ops.attention.pallas.tiling import Plan
from deberta_jax.ops.products import F32


@dataclasses.dataclass(frozen=True)
class Order:
    """Which of the two block numbers runs in the inner loop of the grid: the other side's blocks change there."""

    query_outer: bool

    def blocks(self, outer: Any, inner: Any) -> tuple[Any, Any]:
        """(query block, key block)."""
        return (outer, inner) if self.query_outer else (inner, outer)


QUERY_MAJOR, KEY_MAJOR = Order(query_outer=True), Order(query_outer=False)


def schedule(plan: Plan, texts: Int[Array, "B L"] | None, pairs: Bool[Array, "B L L"] | None, order: Order):
    """For each program 2 * (inner block to have at hand) + (1 if any pair is visible): int32 [B * blocks * blocks].

    A program without a visible pair does no work, and keeps the block that its neighbour fetched.
    """
    if texts is None and pairs is None:
        return jnp.zeros((1,), jnp.int32)
    seen = layout.visible_blocks(plan, texts, pairs)
    seen = seen if order.query_outer else seen.swapaxes(1, 2)
    inner = jnp.arange(plan.blocks, dtype=jnp.int32)[None, None]
    latest = lax.cummax(jnp.where(seen, inner, -1), axis=2)
    first = jnp.argmax(seen, axis=2).astype(jnp.int32)[..., None]
    return (2 * jnp.where(latest < 0, first, latest) + seen).reshape(-1)


def _step(plan: Plan, steps: Any, example: Any, outer: Any, inner: Any) -> Any:
    return steps[(example * plan.blocks + outer) * plan.blocks + inner]


def is_visible(plan: Plan, steps: Any, refs: dict[str, Any], example: Any, outer: Any, inner: Any) -> Any:
    """Whether a program has any work."""
    if "texts_query" not in refs and "pairs" not in refs:
        return inner >= 0
    return (_step(plan, steps, example, outer, inner) & 1) == 1


def _index(plan: Plan, masked: bool, order: Order, select: Callable) -> Callable:
    """An index map from ``select``, which gets (group, example, query block, key block)."""

    def index(group, example, outer, inner, steps, seeds):
        fetched = _step(plan, steps, example, outer, inner) >> 1 if masked else inner
        return select(group, example, *order.blocks(outer, fetched))

    return index


def inputs(plan: Plan, arrays: dict[str, Any], order: Order):
    """Names, block specs and arrays of a kernel's inputs, those that are there."""
    at = functools.partial(_index, plan, "texts" in arrays or "pairs" in arrays, order)
    size, lanes = plan.block, plan.lanes
    low, high = plan.nearest
    by_query = pl.BlockSpec((1, size, lanes), at(lambda g, b, i, j: (b, i, g)))
    by_key = pl.BlockSpec((1, size, lanes), at(lambda g, b, i, j: (b, j, g)))
    window = (pl.Element(2 * size), pl.Element(lanes))
    apart = lambda i, j: jnp.clip(j - i, low, high)
    specs = {
        "query": by_query,
        "key": by_key,
        "value": by_key,
        "table_key": pl.BlockSpec(window, at(lambda g, b, i, j: ((apart(i, j) - low) * size, g * lanes))),
        "table_query": pl.BlockSpec(window, at(lambda g, b, i, j: ((high - apart(i, j)) * size, g * lanes))),
        "texts_query": pl.BlockSpec((1, 1, size), at(lambda g, b, i, j: (b, 0, i))),
        "texts_key": pl.BlockSpec((1, 1, size), at(lambda g, b, i, j: (b, 0, j))),
        "pairs": pl.BlockSpec((1, size, size), at(lambda g, b, i, j: (b, i, j))),
        "context": by_query,
        "cotangent": by_query,
        "logsum": pl.BlockSpec((1, 1, plan.group, size), at(lambda g, b, i, j: (b, g, 0, i))),
    }
    given = dict(arrays)
    texts = given.pop("texts", None)
    if texts is not None:
        given |= {"texts_query": texts, "texts_key": texts}
    names = tuple(name for name in specs if name in given)
    return names, tuple(specs[name] for name in names), tuple(given[name] for name in names)


def own_block(plan: Plan) -> pl.BlockSpec:
    """An output's block of the outer loop's side."""
    return pl.BlockSpec((1, plan.block, plan.lanes), lambda g, b, outer, inner, *_: (b, outer, g))


def has_position(arrays: dict[str, Any]) -> bool:
    return "table_key" in arrays or "table_query" in arrays


def position_scratch(plan: Plan, arrays: dict[str, Any]) -> dict[str, Any]:
    return {"position": pltpu.VMEM((plan.block, plan.block), F32)} if has_position(arrays) else {}


def vmem_limit(plan: Plan, dtype: Any, *, backward: bool) -> int:
    """Bytes of on-chip memory to ask for: buffers (twice, as they are fetched ahead), scratch, and what is spilt."""
    block, table = plan.block * plan.lanes, plan.table_rows * plan.lanes
    item = jnp.dtype(dtype).itemsize
    window = 2 * 2 * block
    square = plan.block * plan.block
    if not backward:
        need = 2 * item * (4 * block + window) + 4 * (block + square + 2 * plan.group * plan.block * 128)
    else:
        whole = plan.padded_length * plan.lanes
        need = 2 * item * (7 * block + window + whole) + 4 * (2 * block + square + whole) + 2 * 2 * 4 * table
    return need + 2 * square + (16 << 20)
