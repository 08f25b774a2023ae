"""Implements the TPU's forward kernel: one pass over the key blocks by online softmax (Milakov and Gimelshein 2018).

The softmax of one key block needs no running maximum.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from deberta_jax.ops.attention.masks import MASKED_SCORE
from deberta_jax.ops.attention.pallas.layout import contract
from deberta_jax.ops.attention.pallas.tiling import TILE, Tiling
from deberta_jax.ops.attention.tpu import grid, scores, strips
from deberta_jax.ops.attention.tpu.grid import QUERY_MAJOR, Program
from deberta_jax.ops.attention.tpu.scores import LOG2_E, select_heads
from deberta_jax.ops.attention.tpu.strips import joined, strip
from deberta_jax.ops.attention.tpu.words import make_words
from deberta_jax.ops.products import F32

# Larger than a masked score also where all keys are masked: their weights are then 0.
SMALLEST_MAXIMUM = MASKED_SCORE / 2


def forward_kernel(
    tiling: Tiling, arrays: dict[str, jax.Array], scalars: tuple[jax.Array, ...], interpret: Any
) -> dict[str, jax.Array]:
    """Returns the arrays of ``output_blocks`` by name."""
    held = make_words(tiling, arrays["query"].dtype)
    scratch = grid.shared_scratch(tiling, arrays, held)
    if tiling.blocks > 1:
        by_query = pltpu.VMEM((tiling.group, tiling.block_size, TILE), F32)
        accumulator = pltpu.VMEM((tiling.block_size, tiling.lanes), F32)
        scratch |= {"running_max": by_query, "running_sum": by_query, "accumulator": accumulator}
    return grid.call(
        "disentangled_attention_forward",
        _kernel,
        tiling,
        held,
        arrays,
        output_blocks(tiling, arrays),
        scratch,
        scalars,
        QUERY_MAJOR,
        interpret,
    )


def output_blocks(tiling: Tiling, arrays: dict[str, Any]) -> dict[str, tuple[pl.BlockSpec, jax.ShapeDtypeStruct]]:
    """Returns the block and the shape of each output.

    Those are the context [B,L,N*H], in the operands' dtype; the logsumexp, float32 [B,groups,group,L]; and of several
    blocks of 16 bits ``context_rest`` like the context, what rounding has taken from it.
    """
    query = arrays["query"]
    rows, size = grid.rows_of_program(tiling, query.shape[0]), tiling.block_size
    context = (
        pl.BlockSpec((rows, size, tiling.lanes), lambda g, b, i, j, *_: (b, i, g)),
        jax.ShapeDtypeStruct(query.shape, query.dtype),
    )
    logsumexp = (
        pl.BlockSpec((rows, 1, tiling.group, size), lambda g, b, i, j, *_: (b, g, 0, i)),
        jax.ShapeDtypeStruct((query.shape[0], tiling.groups, tiling.group, tiling.padded_length), F32),
    )
    rest = {"context_rest": context} if tiling.blocks > 1 and query.dtype != F32 else {}
    return {"context": context, "logsumexp": logsumexp, **rest}


def _kernel(program: Program) -> None:
    if program.tiling.blocks == 1:
        _attend_to_block(program)
        return
    refs = program.refs

    @pl.when(program.key_block == 0)
    def _():
        refs["running_max"][...] = jnp.full_like(refs["running_max"], SMALLEST_MAXIMUM)
        refs["running_sum"][...] = jnp.zeros_like(refs["running_sum"])
        refs["accumulator"][...] = jnp.zeros_like(refs["accumulator"])

    program.when_it_has_work(QUERY_MAJOR, _attend_to_block)

    @pl.when(program.key_block == program.tiling.blocks - 1)
    def _():
        heads = range(program.tiling.group)
        for n in range(program.tiling.strips):
            maxima, totals = ([refs[name][head, strip(n)] for head in heads] for name in ("running_max", "running_sum"))
            _store(program, 0, n, maxima, totals, refs["accumulator"][strip(n)])


def _attend_to_block(program: Program) -> None:
    tiling = program.tiling
    scores.put_key_ids(program)
    scores.put_position_words(program)
    for e in range(program.rows):
        random_bits = [scores.program_random_bits(program, e, head) for head in range(tiling.group)]
        for n in range(tiling.strips):
            _attend(program, e, n, random_bits)


def _attend(program: Program, e: int, n: int, random_bits: list[Any]) -> None:
    """Stores what strip n of row e attends to, or adds it to the running values of several key blocks."""
    refs, tiling = program.refs, program.tiling
    several = tiling.blocks > 1
    mask = scores.strip_mask(program, e, n)
    value = refs["value"][e]
    contexts, maxima, totals, factors = [], [], [], []
    for head, (of_head, scale) in enumerate(scores.strip_scores(program, e, n)):
        scaled = [x * (scale * LOG2_E) for x in of_head]  # for powers of 2
        if mask is not None:
            scaled = [jnp.where(seen, x, MASKED_SCORE) for seen, x in zip(mask, scaled, strict=True)]
        before = refs["running_max"][head, strip(n)] if several else SMALLEST_MAXIMUM
        maximum = jnp.maximum(functools.reduce(jnp.maximum, scaled).max(axis=1, keepdims=True), before)
        weights = [jnp.exp2(x - maximum) for x in scaled]
        total = functools.reduce(jnp.add, weights).sum(axis=1, keepdims=True)
        if several:
            factors.append(jnp.exp2(before - maximum))
            total += refs["running_sum"][head, strip(n)] * factors[-1]
        if random_bits[head] is not None:
            kept = scores.strip_kept(program, random_bits[head], n)
            weights = [jnp.where(keep, x, 0.0) for keep, x in zip(kept, weights, strict=True)]
        contexts.append(contract(joined([x.astype(value.dtype) for x in weights]), value, 1, 0))
        maxima.append(maximum)
        totals.append(total)
    context = select_heads(tiling, contexts)
    if not several:
        _store(program, e, n, maxima, totals, context)
        return
    for head in range(tiling.group):
        refs["running_max"][head, strip(n)], refs["running_sum"][head, strip(n)] = maxima[head], totals[head]
    rescaled = refs["accumulator"][strip(n)] * select_heads(tiling, [strips.in_lanes(tiling, x) for x in factors])
    refs["accumulator"][strip(n)] = rescaled + context


def _store(program: Program, e: int, n: int, maxima: list[Any], totals: list[Any], context: Any) -> None:
    """Stores context and logsumexp of strip n of row e, given the context times the totals [128,W]."""
    refs, tiling = program.refs, program.tiling
    maximum, total = (select_heads(tiling, [strips.in_lanes(tiling, x) for x in each]) for each in (maxima, totals))
    total += 1e-30  # 0 where all are masked, else at least 1
    context *= 1.0 / (total * (1.0 - tiling.dropout_rate))
    rounded = context.astype(refs["context"].dtype)
    refs["context"][e, strip(n)] = rounded
    if "context_rest" in refs:
        refs["context_rest"][e, strip(n)] = (context - rounded.astype(F32)).astype(rounded.dtype)
    by_lane = ((maximum + jnp.log2(total)) * (1.0 / LOG2_E)).T
    for head in range(tiling.group):
        lane = head * tiling.lanes_per_head
        refs["logsumexp"][e, 0, head : head + 1, strip(n)] = by_lane[lane : lane + 1]
