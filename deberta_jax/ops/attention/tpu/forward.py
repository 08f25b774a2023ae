"""Implements the TPU's forward kernel: one pass over the key blocks by online softmax (Milakov and Gimelshein 2018)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from deberta_jax.ops.attention.masks import MASKED_SCORE
from deberta_jax.ops.attention.pallas.layout import contract
from deberta_jax.ops.attention.pallas.tiling import TILE, Tiling
from deberta_jax.ops.attention.tpu import grid, strips
from deberta_jax.ops.products import F32


def forward_kernel(tiling: Tiling, arrays: dict[str, jax.Array], scalars: tuple[jax.Array, jax.Array], interpret: Any):
    """Returns the context [B,L,N*H] in the operands' dtype, and the logsumexp, float32 [B,groups,group,L]."""
    batch, blocks = arrays["query"].shape[0], tiling.blocks
    names, specs, values = grid.input_blocks(tiling, arrays, grid.QUERY_MAJOR)
    results = output_blocks(tiling, arrays)
    scratch = {
        "running_max": pltpu.VMEM((tiling.group, tiling.block_size, TILE), F32),
        "running_sum": pltpu.VMEM((tiling.group, tiling.block_size, TILE), F32),
        "accumulator": pltpu.VMEM((tiling.block_size, tiling.lanes), F32),
        **grid.position_scratch(tiling, arrays),
    }
    return pl.pallas_call(
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
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=grid.vmem_limit(tiling, arrays["query"].dtype, backward=False),
        ),
        interpret=interpret,
        name="disentangled_attention_forward",
    )(*scalars, *values)


def output_blocks(tiling: Tiling, arrays: dict[str, Any]) -> dict[str, tuple[pl.BlockSpec, jax.ShapeDtypeStruct]]:
    """Returns the block and the shape of each output."""
    query = arrays["query"]
    logsumexp = pl.BlockSpec((1, 1, tiling.group, tiling.block_size), lambda g, b, i, j, *_: (b, g, 0, i))
    shape = (query.shape[0], tiling.groups, tiling.group, tiling.padded_length)
    return {
        "context": (grid.outer_block(tiling), jax.ShapeDtypeStruct(query.shape, query.dtype)),
        "logsumexp": (logsumexp, jax.ShapeDtypeStruct(shape, F32)),
    }


def _kernel(tiling: Tiling, names: tuple[str, ...], steps: Any, seeds: Any, *given: Any) -> None:
    refs = dict(zip(names, given, strict=True))
    group, example, i, j = (pl.program_id(axis) for axis in range(4))

    @pl.when(j == 0)
    def _():
        refs["running_max"][...] = jnp.full_like(refs["running_max"], MASKED_SCORE)
        refs["running_sum"][...] = jnp.zeros_like(refs["running_sum"])
        refs["accumulator"][...] = jnp.zeros_like(refs["accumulator"])

    @pl.when(grid.has_work(tiling, steps, refs, example, i, j))
    def _():
        for head in range(tiling.group):
            random_bits = strips.program_random_bits(tiling, seeds, example, group, head)
            strips.put_position_scores(tiling, refs, head, j - i)
            strips.for_each_strip(tiling, functools.partial(_add_strip, tiling, refs, head, random_bits, (i, j)))

    @pl.when(j == tiling.blocks - 1)
    def _():
        for head in range(tiling.group):
            strips.for_each_strip(tiling, functools.partial(_finish_strip, tiling, refs, head))
        refs["context"][0] = refs["accumulator"][...].astype(refs["context"].dtype)


def _add_strip(
    tiling: Tiling, refs: dict[str, Any], head: int, random_bits: Any, blocks: tuple[Any, Any], n: Any, at: Any
):
    """Adds the keys of a block to the running values of a strip of queries."""
    query = strips.mask_other_heads(refs["query"][0, at], tiling, head)
    scores, mask = strips.strip_scores(tiling, refs, query, at)
    before = refs["running_max"][head, at][:, :1]
    running_max = jnp.maximum(before, scores.max(axis=1, keepdims=True))
    weights = jnp.exp(scores - running_max)
    if mask is not None:  # where all keys so far were masked, a masked score equals the maximum
        weights = jnp.where(mask, weights, 0.0)
    rescale = jnp.exp(before - running_max)
    running_sum = refs["running_sum"][head, at][:, :1] * rescale + weights.sum(axis=1, keepdims=True)
    if random_bits is not None:
        weights = jnp.where(strips.strip_kept(tiling, random_bits, n, *blocks), weights, 0.0)
    value = refs["value"][0]
    added = strips.mask_other_heads(contract(weights.astype(value.dtype), value, 1, 0), tiling, head)
    accumulator = refs["accumulator"][at]
    own_lanes = strips.is_lane_of(tiling, head, accumulator.shape)
    refs["accumulator"][at] = accumulator * jnp.where(own_lanes, rescale, 1.0) + added
    refs["running_max"][head, at] = jnp.broadcast_to(running_max, (TILE, TILE))
    refs["running_sum"][head, at] = jnp.broadcast_to(running_sum, (TILE, TILE))


def _finish_strip(tiling: Tiling, refs: dict[str, Any], head: int, n: Any, at: Any):
    """Divides a strip's accumulator by its running sum, and stores its logsumexp."""
    running_sum = refs["running_sum"][head, at][:, :1]
    running_sum = jnp.where(running_sum == 0.0, 1.0, running_sum)
    accumulator = refs["accumulator"][at]
    own_lanes = strips.is_lane_of(tiling, head, accumulator.shape)
    factor = 1.0 / (running_sum * (1.0 - tiling.dropout_rate))
    refs["accumulator"][at] = accumulator * jnp.where(own_lanes, factor, 1.0)
    logsumexp = refs["running_max"][head, at][:, :1] + jnp.log(running_sum)
    refs["logsumexp"][0, 0, pl.ds(head, 1), at] = strips.to_row(logsumexp)
