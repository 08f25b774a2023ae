"""The backward kernel: all five gradients in one pass over the pairs of blocks.

With dS = P (dP - delta) scale, U = unshift(dS) and W = unshift(dS^T):
dq = dS k + U EK, dk = dS^T q + W EQ, dEK = U^T q, dEQ = W^T k. Key blocks run in the outer loop. dk and dv of a key
block grow over its query blocks, dq over the whole example, and the gradients of the tables over all examples: serial
sums in a fixed order, without a scatter. Between far blocks a table's gradient is that of one row.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from deberta_jax.ops.attention.pallas.tiling import TILE, Plan
from deberta_jax.ops.attention.tpu import grid as operands
from deberta_jax.ops.attention.tpu import strips as tiles
from deberta_jax.ops.products import F32


def backward(plan: Plan, arrays: dict[str, jax.Array], scalars: tuple[jax.Array, jax.Array], interpret: Any):
    """Gradients by name: query, key, value [B,L,N*H] in their dtype, and the tables given, float32 [U,N*H]."""
    batch, blocks = arrays["query"].shape[0], plan.blocks
    names, specs, values = operands.inputs(plan, arrays, operands.KEY_MAJOR)
    made = outputs(plan, arrays)
    scratch = {
        "sum_query": pltpu.VMEM((plan.padded_length, plan.lanes), F32),
        "sum_key": pltpu.VMEM((plan.block, plan.lanes), F32),
        "sum_value": pltpu.VMEM((plan.block, plan.lanes), F32),
        **operands.position_scratch(plan, arrays),
    }
    gradients = pl.pallas_call(
        functools.partial(_kernel, plan, (*names, *made, *scratch)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(plan.groups, batch, blocks, blocks),
            in_specs=specs,
            out_specs=tuple(spec for spec, _ in made.values()),
            scratch_shapes=tuple(scratch.values()),
        ),
        out_shape=tuple(shape for _, shape in made.values()),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"),
            vmem_limit_bytes=operands.vmem_limit(plan, arrays["query"].dtype, backward=True),
        ),
        interpret=interpret,
        name="disentangled_attention_backward",
    )(*scalars, *values)
    return dict(zip((name.removeprefix("d_") for name in made), gradients, strict=True))


def outputs(plan: Plan, arrays: dict[str, Any]) -> dict[str, tuple[pl.BlockSpec, jax.ShapeDtypeStruct]]:
    """Block and shape of each output: the gradients, ``d_`` and the name."""
    whole = pl.BlockSpec((1, plan.padded_length, plan.lanes), lambda g, b, *_: (b, 0, g))
    table = pl.BlockSpec((plan.table_rows, plan.lanes), lambda g, *_: (0, g))
    own = operands.own_block(plan)
    blocks = {"query": whole, "key": own, "value": own, "table_key": table, "table_query": table}
    return {
        f"d_{name}": (
            block,
            jax.ShapeDtypeStruct(arrays[name].shape, F32 if block is table else arrays[name].dtype),
        )
        for name, block in blocks.items()
        if name in arrays
    }


def _kernel(plan: Plan, names: tuple[str, ...], steps: Any, seeds: Any, *given: Any) -> None:
    refs = dict(zip(names, given, strict=True))
    group, example, j, i = (pl.program_id(axis) for axis in range(4))
    tables = [name for name in ("d_table_key", "d_table_query") if name in refs]
    here = pl.ds(pl.multiple_of(i * plan.block, TILE), plan.block)

    @pl.when((example == 0) & (j == 0) & (i == 0))
    def _():
        for name in tables:
            refs[name][...] = jnp.zeros_like(refs[name])

    @pl.when(j == 0)
    def _():
        refs["sum_query"][here] = jnp.zeros((plan.block, plan.lanes), F32)

    @pl.when(i == 0)
    def _():
        refs["sum_key"][...] = jnp.zeros_like(refs["sum_key"])
        refs["sum_value"][...] = jnp.zeros_like(refs["sum_value"])

    @pl.when(operands.is_visible(plan, steps, refs, example, j, i))
    def _():
        for head in range(plan.group):
            words = tiles.dropout_words(plan, seeds, example, group, head)
            tiles.put_position_scores(plan, refs, head, j - i)
            tiles.each_strip(plan, functools.partial(_strip, plan, refs, head, words, (i, j)))
            if tables:
                tiles.branches(
                    plan,
                    j - i,
                    functools.partial(_near, plan, refs, head, (i, j)),
                    functools.partial(_far, plan, refs, head, (i, j)),
                )

    @pl.when(i == plan.blocks - 1)
    def _():
        refs["d_key"][0] = refs["sum_key"][...].astype(refs["d_key"].dtype)
        refs["d_value"][0] = refs["sum_value"][...].astype(refs["d_value"].dtype)

    @pl.when(j == plan.blocks - 1)
    def _():
        refs["d_query"][0, here] = refs["sum_query"][here].astype(refs["d_query"].dtype)


def _here(plan: Plan, block: Any, n: Any) -> Any:
    """Strip n of a block, in an array of the whole length."""
    return pl.ds(pl.multiple_of(block * plan.block + n * TILE, TILE), TILE)


def _strip(plan: Plan, refs: dict[str, Any], head: int, words: Any, blocks: tuple[Any, Any], n: Any, at: Any) -> None:
    """The gradients through the content products; leaves dS of the strip where its position scores stood."""
    query, cotangent = (tiles.own_lanes(refs[name][0, at], plan, head) for name in ("query", "cotangent"))
    scores, seen = tiles.strip_scores(plan, refs, query, at)
    weights = jnp.exp(scores - tiles.column(refs["logsum"][0, 0, pl.ds(head, 1), at]))
    if seen is not None:
        weights = jnp.where(seen, weights, 0.0)
    d_weights = tiles.product(cotangent, refs["value"][0], 1, 1)
    dropped = weights
    if words is not None:
        keep = tiles.strip_kept(plan, words, n, *blocks)
        dropped = jnp.where(keep, weights * (1.0 / (1.0 - plan.rate)), 0.0)
        d_weights = jnp.where(keep, d_weights * (1.0 / (1.0 - plan.rate)), 0.0)
    delta = (cotangent.astype(F32) * refs["context"][0, at].astype(F32)).sum(axis=1, keepdims=True)
    d_scores = weights * (d_weights - delta) * plan.scale
    if "position" in refs:
        refs["position"][at] = d_scores
    d_scores = d_scores.astype(query.dtype)
    refs["sum_value"][...] += tiles.product(dropped.astype(query.dtype), cotangent, 0, 0)
    refs["sum_key"][...] += tiles.product(d_scores, query, 0, 0)
    refs["sum_query"][_here(plan, blocks[0], n)] += tiles.own_lanes(
        tiles.product(d_scores, refs["key"][0], 1, 0), plan, head
    )


def _starts(plan: Plan, blocks: tuple[Any, Any]) -> tuple[Any, Any]:
    """First rows of the windows of EK and EQ."""
    low, high = plan.nearest
    apart = jnp.clip(blocks[1] - blocks[0], low, high)
    return (apart - low) * plan.block, (high - apart) * plan.block


def _near(plan: Plan, refs: dict[str, Any], head: int, blocks: tuple[Any, Any]) -> None:
    key_start, query_start = _starts(plan, blocks)
    d_scores, dtype = refs["position"], refs["query"].dtype

    def through_table_key(n, at):
        by_distance = tiles.unshift(d_scores[at]).astype(dtype)
        window = tiles.strip_window(plan, n)
        query = tiles.own_lanes(refs["query"][0, at], plan, head)
        added = tiles.product(by_distance, refs["table_key"][window], 1, 0)
        refs["sum_query"][_here(plan, blocks[0], n)] += tiles.own_lanes(added, plan, head)
        rows = pl.ds(pl.multiple_of(key_start + window.start, TILE), window.size)
        refs["d_table_key"][rows] += tiles.product(by_distance, query, 0, 0)

    def through_table_query(n, at):
        by_distance = tiles.unshift(d_scores[:, at].T).astype(dtype)
        window = tiles.strip_window(plan, n)
        key = tiles.own_lanes(refs["key"][0, at], plan, head)
        refs["sum_key"][at] += tiles.own_lanes(
            tiles.product(by_distance, refs["table_query"][window], 1, 0), plan, head
        )
        rows = pl.ds(pl.multiple_of(query_start + window.start, TILE), window.size)
        refs["d_table_query"][rows] += tiles.product(by_distance, key, 0, 0)

    if "d_table_key" in refs:
        tiles.each_strip(plan, through_table_key)
    if "d_table_query" in refs:
        tiles.each_strip(plan, through_table_query)


def _far(plan: Plan, refs: dict[str, Any], head: int, blocks: tuple[Any, Any]) -> None:
    """One tiles.row of each table: sums of dS along keys, or queries, times that row; and its gradient the reverse."""
    starts = _starts(plan, blocks)
    d_scores = refs["position"]

    def through_table_key(n, at):
        total = d_scores[at].sum(axis=1, keepdims=True)
        query, table = (
            tiles.own_lanes(refs["query"][0, at], plan, head).astype(F32),
            refs["table_key"][pl.ds(0, TILE)],
        )
        refs["sum_query"][_here(plan, blocks[0], n)] += tiles.own_lanes(total * table.astype(F32), plan, head)
        refs["d_table_key"][pl.ds(starts[0], 1)] += (total * query).sum(axis=0, keepdims=True)

    def through_table_query(n, at):
        total = tiles.column(d_scores[:, at].sum(axis=0, keepdims=True))
        key, table = (
            tiles.own_lanes(refs["key"][0, at], plan, head).astype(F32),
            refs["table_query"][pl.ds(0, TILE)],
        )
        refs["sum_key"][at] += tiles.own_lanes(total * table.astype(F32), plan, head)
        refs["d_table_query"][pl.ds(starts[1], 1)] += (total * key).sum(axis=0, keepdims=True)

    if "d_table_key" in refs:
        tiles.each_strip(plan, through_table_key)
    if "d_table_query" in refs:
        tiles.each_strip(plan, through_table_query)
