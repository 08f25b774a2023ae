"""Implements the TPU's backward kernel: all five gradients in one pass over the pairs of blocks.

With dS = P (dP - delta) scale, U = rel_unshift(dS) and W = rel_unshift(dS^T):

    d_query = dS k + U table_key        d_table_key = U^T q
    d_key = dS^T q + W table_query      d_table_query = W^T k

Key blocks run in the outer loop. d_key and d_value of a key block are summed over its query blocks, d_query over the
whole example, and the gradients of the tables over all examples: serial sums in a fixed order, without a scatter.
Between far blocks a table's gradient is that of one row.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from deberta_jax.ops.attention.pallas.layout import contract
from deberta_jax.ops.attention.pallas.tiling import TILE, Tiling
from deberta_jax.ops.attention.tpu import grid, strips
from deberta_jax.ops.products import F32


def backward_kernel(tiling: Tiling, arrays: dict[str, jax.Array], scalars: tuple[jax.Array, jax.Array], interpret: Any):
    """Returns the gradients by name: query, key, value [B,L,N*H] in their dtype, given tables float32 [U,N*H]."""
    batch, blocks = arrays["query"].shape[0], tiling.blocks
    names, specs, values = grid.input_blocks(tiling, arrays, grid.KEY_MAJOR)
    results = output_blocks(tiling, arrays)
    scratch = {
        "sum_d_query": pltpu.VMEM((tiling.padded_length, tiling.lanes), F32),
        "sum_d_key": pltpu.VMEM((tiling.block_size, tiling.lanes), F32),
        "sum_d_value": pltpu.VMEM((tiling.block_size, tiling.lanes), F32),
        **grid.position_scratch(tiling, arrays),
    }
    gradients = pl.pallas_call(
        functools.partial(_kernel, tiling, (*names, *results, *scratch)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(tiling.groups, batch, blocks, blocks),
            in_specs=specs,
            out_specs=tuple(spec for spec, _ in results.values()),
            scratch_shapes=tuple(scratch.values()),
        ),
        out_shape=tuple(shape for _, shape in results.values()),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"),
            vmem_limit_bytes=grid.vmem_limit(tiling, arrays["query"].dtype, backward=True),
        ),
        interpret=interpret,
        name="disentangled_attention_backward",
    )(*scalars, *values)
    return dict(zip((name.removeprefix("d_") for name in results), gradients, strict=True))


def output_blocks(tiling: Tiling, arrays: dict[str, Any]) -> dict[str, tuple[pl.BlockSpec, jax.ShapeDtypeStruct]]:
    """Returns the block and the shape of each output, by the name of the array with the prefix ``d_``."""
    whole = pl.BlockSpec((1, tiling.padded_length, tiling.lanes), lambda g, b, *_: (b, 0, g))
    table = pl.BlockSpec((tiling.table_rows, tiling.lanes), lambda g, *_: (0, g))
    outer = grid.outer_block(tiling)
    blocks = {"query": whole, "key": outer, "value": outer, "table_key": table, "table_query": table}
    return {
        f"d_{name}": (
            block,
            jax.ShapeDtypeStruct(arrays[name].shape, F32 if block is table else arrays[name].dtype),
        )
        for name, block in blocks.items()
        if name in arrays
    }


def _kernel(tiling: Tiling, names: tuple[str, ...], steps: Any, seeds: Any, *given: Any) -> None:
    refs = dict(zip(names, given, strict=True))
    group, example, j, i = (pl.program_id(axis) for axis in range(4))
    tables = [name for name in ("d_table_key", "d_table_query") if name in refs]
    query_block = pl.ds(pl.multiple_of(i * tiling.block_size, TILE), tiling.block_size)

    @pl.when((example == 0) & (j == 0) & (i == 0))
    def _():
        for name in tables:
            refs[name][...] = jnp.zeros_like(refs[name])

    @pl.when(j == 0)
    def _():
        refs["sum_d_query"][query_block] = jnp.zeros((tiling.block_size, tiling.lanes), F32)

    @pl.when(i == 0)
    def _():
        refs["sum_d_key"][...] = jnp.zeros_like(refs["sum_d_key"])
        refs["sum_d_value"][...] = jnp.zeros_like(refs["sum_d_value"])

    @pl.when(grid.has_work(tiling, steps, refs, example, j, i))
    def _():
        for head in range(tiling.group):
            random_bits = strips.program_random_bits(tiling, seeds, example, group, head)
            strips.put_position_scores(tiling, refs, head, j - i)
            strips.for_each_strip(
                tiling, functools.partial(_content_gradients, tiling, refs, head, random_bits, (i, j))
            )
            if tables:
                strips.near_or_far(
                    tiling,
                    j - i,
                    functools.partial(_near_gradients, tiling, refs, head, (i, j)),
                    functools.partial(_far_gradients, tiling, refs, head, (i, j)),
                )

    @pl.when(i == tiling.blocks - 1)
    def _():
        refs["d_key"][0] = refs["sum_d_key"][...].astype(refs["d_key"].dtype)
        refs["d_value"][0] = refs["sum_d_value"][...].astype(refs["d_value"].dtype)

    @pl.when(j == tiling.blocks - 1)
    def _():
        refs["d_query"][0, query_block] = refs["sum_d_query"][query_block].astype(refs["d_query"].dtype)


def _strip_of_row(tiling: Tiling, block: Any, n: Any) -> Any:
    """Returns the slice of strip n of a block, in an array of the whole length."""
    return pl.ds(pl.multiple_of(block * tiling.block_size + n * TILE, TILE), TILE)


def _content_gradients(
    tiling: Tiling, refs: dict[str, Any], head: int, random_bits: Any, blocks: tuple[Any, Any], n: Any, at: Any
) -> None:
    """Adds a strip's gradients through the content term; replaces its position scores by dS."""
    query, cotangent = (strips.mask_other_heads(refs[name][0, at], tiling, head) for name in ("query", "cotangent"))
    scores, mask = strips.strip_scores(tiling, refs, query, at)
    weights = jnp.exp(scores - strips.to_column(refs["logsumexp"][0, 0, pl.ds(head, 1), at]))
    if mask is not None:
        weights = jnp.where(mask, weights, 0.0)
    d_weights = contract(cotangent, refs["value"][0], 1, 1)
    dropped = weights
    if random_bits is not None:
        keep = strips.strip_kept(tiling, random_bits, n, *blocks)
        dropped = jnp.where(keep, weights * (1.0 / (1.0 - tiling.dropout_rate)), 0.0)
        d_weights = jnp.where(keep, d_weights * (1.0 / (1.0 - tiling.dropout_rate)), 0.0)
    delta = (cotangent.astype(F32) * refs["context"][0, at].astype(F32)).sum(axis=1, keepdims=True)
    d_scores = weights * (d_weights - delta) * tiling.scale
    if "position_scores" in refs:
        refs["position_scores"][at] = d_scores
    d_scores = d_scores.astype(query.dtype)
    refs["sum_d_value"][...] += contract(dropped.astype(query.dtype), cotangent, 0, 0)
    refs["sum_d_key"][...] += contract(d_scores, query, 0, 0)
    refs["sum_d_query"][_strip_of_row(tiling, blocks[0], n)] += strips.mask_other_heads(
        contract(d_scores, refs["key"][0], 1, 0), tiling, head
    )


def _window_starts(tiling: Tiling, blocks: tuple[Any, Any]) -> tuple[Any, Any]:
    """Returns the first rows of the windows of ``table_key`` and ``table_query``."""
    low, high = tiling.near
    offset = jnp.clip(blocks[1] - blocks[0], low, high)
    return (offset - low) * tiling.block_size, (high - offset) * tiling.block_size


def _near_gradients(tiling: Tiling, refs: dict[str, Any], head: int, blocks: tuple[Any, Any]) -> None:
    """Adds the gradients through both position terms of near blocks."""
    key_start, query_start = _window_starts(tiling, blocks)
    d_scores, dtype = refs["position_scores"], refs["query"].dtype

    def c2p(n, at):
        by_distance = strips.rel_unshift(d_scores[at]).astype(dtype)
        window = strips.strip_window(tiling, n)
        query = strips.mask_other_heads(refs["query"][0, at], tiling, head)
        added = contract(by_distance, refs["table_key"][window], 1, 0)
        refs["sum_d_query"][_strip_of_row(tiling, blocks[0], n)] += strips.mask_other_heads(added, tiling, head)
        rows = pl.ds(pl.multiple_of(key_start + window.start, TILE), window.size)
        refs["d_table_key"][rows] += contract(by_distance, query, 0, 0)

    def p2c(n, at):
        by_distance = strips.rel_unshift(d_scores[:, at].T).astype(dtype)
        window = strips.strip_window(tiling, n)
        key = strips.mask_other_heads(refs["key"][0, at], tiling, head)
        refs["sum_d_key"][at] += strips.mask_other_heads(
            contract(by_distance, refs["table_query"][window], 1, 0), tiling, head
        )
        rows = pl.ds(pl.multiple_of(query_start + window.start, TILE), window.size)
        refs["d_table_query"][rows] += contract(by_distance, key, 0, 0)

    if "d_table_key" in refs:
        strips.for_each_strip(tiling, c2p)
    if "d_table_query" in refs:
        strips.for_each_strip(tiling, p2c)


def _far_gradients(tiling: Tiling, refs: dict[str, Any], head: int, blocks: tuple[Any, Any]) -> None:
    """Adds the gradients through both position terms of far blocks, which read one row of each table.

    Queries and keys get the sum of their dS times that row; the row gets the sum of dS times queries and keys.
    """
    starts = _window_starts(tiling, blocks)
    d_scores = refs["position_scores"]

    def c2p(n, at):
        d_sum = d_scores[at].sum(axis=1, keepdims=True)
        query = strips.mask_other_heads(refs["query"][0, at], tiling, head).astype(F32)
        table = refs["table_key"][pl.ds(0, TILE)]
        refs["sum_d_query"][_strip_of_row(tiling, blocks[0], n)] += strips.mask_other_heads(
            d_sum * table.astype(F32), tiling, head
        )
        refs["d_table_key"][pl.ds(starts[0], 1)] += (d_sum * query).sum(axis=0, keepdims=True)

    def p2c(n, at):
        d_sum = strips.to_column(d_scores[:, at].sum(axis=0, keepdims=True))
        key = strips.mask_other_heads(refs["key"][0, at], tiling, head).astype(F32)
        table = refs["table_query"][pl.ds(0, TILE)]
        refs["sum_d_key"][at] += strips.mask_other_heads(d_sum * table.astype(F32), tiling, head)
        refs["d_table_query"][pl.ds(starts[1], 1)] += (d_sum * key).sum(axis=0, keepdims=True)

    if "d_table_key" in refs:
        strips.for_each_strip(tiling, c2p)
    if "d_table_query" in refs:
        strips.for_each_strip(tiling, p2c)
