"""The forward kernel: one pass over the key blocks with a running maximum and sum (Milakov and Gimelshein 2018)."""

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


def forward(plan: Plan, arrays: dict[str, jax.Array], scalars: tuple[jax.Array, jax.Array], interpret: Any):
    """Context [B,L,N*H] in the operands' dtype, and log of the sum of exponentials, float32 [B,groups,group,L]."""
    batch, blocks = arrays["query"].shape[0], plan.blocks
    names, specs, values = operands.inputs(plan, arrays, operands.QUERY_MAJOR)
    made = outputs(plan, arrays)
    scratch = {
        "top": pltpu.VMEM((plan.group, plan.block, TILE), F32),
        "total": pltpu.VMEM((plan.group, plan.block, TILE), F32),
        "sums": pltpu.VMEM((plan.block, plan.lanes), F32),
        **operands.position_scratch(plan, arrays),
    }
    return pl.pallas_call(
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
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=operands.vmem_limit(plan, arrays["query"].dtype, backward=False),
        ),
        interpret=interpret,
        name="disentangled_attention_forward",
    )(*scalars, *values)


def outputs(plan: Plan, arrays: dict[str, Any]) -> dict[str, tuple[pl.BlockSpec, jax.ShapeDtypeStruct]]:
    """Block and shape of each output."""
    query = arrays["query"]
    logsum = pl.BlockSpec((1, 1, plan.group, plan.block), lambda g, b, i, j, *_: (b, g, 0, i))
    shape = (query.shape[0], plan.groups, plan.group, plan.padded_length)
    return {
        "context": (operands.own_block(plan), jax.ShapeDtypeStruct(query.shape, query.dtype)),
        "logsum": (logsum, jax.ShapeDtypeStruct(shape, F32)),
    }


def _kernel(plan: Plan, names: tuple[str, ...], steps: Any, seeds: Any, *given: Any) -> None:
    refs = dict(zip(names, given, strict=True))
    group, example, i, j = (pl.program_id(axis) for axis in range(4))

    @pl.when(j == 0)
    def _():
        refs["top"][...] = jnp.full_like(refs["top"], tiles.MASKED)
        refs["total"][...] = jnp.zeros_like(refs["total"])
        refs["sums"][...] = jnp.zeros_like(refs["sums"])

    @pl.when(operands.is_visible(plan, steps, refs, example, i, j))
    def _():
        for head in range(plan.group):
            words = tiles.dropout_words(plan, seeds, example, group, head)
            tiles.put_position_scores(plan, refs, head, j - i)
            tiles.each_strip(plan, functools.partial(_add_strip, plan, refs, head, words, (i, j)))

    @pl.when(j == plan.blocks - 1)
    def _():
        for head in range(plan.group):
            tiles.each_strip(plan, functools.partial(_finish_strip, plan, refs, head))
        refs["context"][0] = refs["sums"][...].astype(refs["context"].dtype)


def _add_strip(plan: Plan, refs: dict[str, Any], head: int, words: Any, blocks: tuple[Any, Any], n: Any, at: Any):
    scores, seen = tiles.strip_scores(plan, refs, tiles.own_lanes(refs["query"][0, at], plan, head), at)
    before = refs["top"][head, at][:, :1]
    top = jnp.maximum(before, scores.max(axis=1, keepdims=True))
    weights = jnp.exp(scores - top)
    if seen is not None:  # where nothing was visible so far, a masked score equals the maximum
        weights = jnp.where(seen, weights, 0.0)
    shrink = jnp.exp(before - top)
    total = refs["total"][head, at][:, :1] * shrink + weights.sum(axis=1, keepdims=True)
    if words is not None:
        weights = jnp.where(tiles.strip_kept(plan, words, n, *blocks), weights, 0.0)
    value = refs["value"][0]
    added = tiles.own_lanes(tiles.product(weights.astype(value.dtype), value, 1, 0), plan, head)
    sums, (first, end) = refs["sums"][at], (head * plan.lanes_per_head, (head + 1) * plan.lanes_per_head)
    lane = jax.lax.broadcasted_iota(jnp.int32, sums.shape, 1)
    refs["sums"][at] = sums * jnp.where((lane >= first) & (lane < end), shrink, 1.0) + added
    refs["top"][head, at] = jnp.broadcast_to(top, (TILE, TILE))
    refs["total"][head, at] = jnp.broadcast_to(total, (TILE, TILE))


def _finish_strip(plan: Plan, refs: dict[str, Any], head: int, n: Any, at: Any):
    total = refs["total"][head, at][:, :1]
    total = jnp.where(total == 0.0, 1.0, total)
    sums, (first, end) = refs["sums"][at], (head * plan.lanes_per_head, (head + 1) * plan.lanes_per_head)
    lane = jax.lax.broadcasted_iota(jnp.int32, sums.shape, 1)
    share = 1.0 / (total * (1.0 - plan.rate))
    refs["sums"][at] = sums * jnp.where((lane >= first) & (lane < end), share, 1.0)
    refs["logsum"][0, 0, pl.ds(head, 1), at] = tiles.row(refs["top"][head, at][:, :1] + jnp.log(total))
