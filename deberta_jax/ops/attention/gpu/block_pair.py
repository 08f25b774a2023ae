"""Implements the operations of the GPU kernels on one pair of blocks, and its scores.

    score[i,j] = scale * (q_i.k_j + q_i.table_key[i-j] + k_j.table_query[i-j])

One block is *outer*, kept by a program; the other is *inner*, its loop variable. Score tiles are [outer, inner], S by
S. Which of the two holds the queries differs from kernel to kernel; everything here is the same for both. Scores are
in units of log 2: their scale has the factor log2(e), and the softmax takes powers of 2.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from deberta_jax.ops.attention.dropout import head_random_bits, is_weight_kept
from deberta_jax.ops.attention.gpu.warpgroup import Chunks, Warpgroup
from deberta_jax.ops.attention.masks import MASKED_SCORE
from deberta_jax.ops.attention.pallas.tiling import Tiling

LOG2E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class KernelProgram:
    """Describes what a program works on: one outer block of one example and head.

    Attributes:
      refs: whole arrays and the program's buffers, by name.
      query_outer: True if the outer block is one of queries.
      group: the operations of this program's threads.
      part: number of the program among those of its head.
      example, head, outer: numbers of the example, the head and the outer block.
    """

    tiling: Tiling
    refs: dict[str, Any]
    query_outer: bool
    group: Warpgroup
    part: Any
    example: Any
    head: Any
    outer: Any

    def block(self, name: str, number: Any) -> list[Any]:
        """Returns the chunks of a block [S,H] of query, key or the like, in the device's memory."""
        return [self.refs[name].at[self.example, self.tokens(number), lanes] for lanes in self.lanes()]

    def numbers(self, name: str, number: Any) -> Any:
        """Returns a block [S] of an array with one number for each token and head."""
        return self.refs[name].at[self.example, self.head, self.tokens(number)]

    def far_numbers(self, name: str, number: Any, side: Any) -> Any:
        """Returns a block [S] of an array with numbers for each token, head and end of a table, 0 or 1."""
        return self.refs[name].at[self.example, self.head, side, self.tokens(number)]

    def has(self, name: str) -> bool:
        """Returns whether there is an array of this name."""
        return name in self.refs

    @property
    def outer_table(self) -> str:
        """Name of the table that the outer block is multiplied with."""
        return "table_key" if self.query_outer else "table_query"

    @property
    def inner_table(self) -> str:
        """Name of the table that the inner block is multiplied with."""
        return "table_query" if self.query_outer else "table_key"

    @property
    def far(self) -> tuple[int, int]:
        """Largest negative and smallest positive inner - outer at which all distances read one row."""
        low, high = self.tiling.far
        return (low, high) if self.query_outer else (-high, -low)

    def first_halves(self, inner: Any) -> tuple[Any, Any]:
        """Returns the first halves of the windows of the outer and the inner block's tables."""
        near = self.tiling.near
        low, high = near if self.query_outer else (-near[1], -near[0])
        offset = inner - self.outer
        return offset - low, high - offset

    def tokens(self, number: Any) -> Any:
        """Returns the slice of a block's tokens."""
        return pl.ds(number * self.tiling.block_size, self.tiling.block_size)

    def lanes(self) -> list[Any]:
        """Returns the slices of the head's chunks in arrays with all heads side by side."""
        size, first = self.group.chunk, self.head * self.tiling.lanes_per_head
        return [pl.ds(first + number * size, size) for number in range(self.group.chunks)]


def for_each_half(program: KernelProgram, table: str, first: Any, visit: Callable[[int, int], Any]) -> None:
    """Calls ``visit(half, block of the buffer)`` with each half of a window of a table in the window's buffer."""
    size, group = program.tiling.block_size, program.group
    buffer = program.refs["window_buffer"]

    def fetch(half, blocks):
        rows = pl.ds((first + half) * size, blocks * size)
        group.fetch([program.refs[table].at[rows, lanes] for lanes in program.lanes()], buffer)

    for half in range(2):
        if half == 0 or group.window_blocks == 1:
            fetch(half, group.window_blocks)
        visit(half, half % group.window_blocks)


def near_scores(program: KernelProgram, outer: Chunks, number: Any) -> Any:
    """Returns the sum of the three terms [S,S], unscaled. The inner block is in its buffer.

    Leaves the last half of the outer block's window, or both, in the window's buffer.
    """
    group, inner, products = program.group, program.refs["inner_buffer"], program.refs["products_buffer"]
    scores = group.times(outer, inner)
    halves = dict(zip((program.outer_table, program.inner_table), program.first_halves(number), strict=True))
    for table, transposed in ((program.inner_table, True), (program.outer_table, False)):
        if not program.has(table):
            continue
        left = group.left_anew([inner.at[n] for n in range(group.chunks)]) if transposed else outer
        put = lambda half, block, left=left: group.put_products(
            products, half, group.times(left, program.refs["window_buffer"], block)
        )
        for_each_half(program, table, halves[table], put)
        scores += group.take_scores(products, transposed=transposed)
    return scores


def far_scores(program: KernelProgram, outer: Chunks, number: Any, *, after: Any) -> Any:
    """Returns the sum of the three terms where all distances read one row: a number per row and one per column."""
    group = program.group
    scores = group.times(outer, program.refs["inner_buffer"])
    if program.has(f"far_{program.outer_table}"):
        rows = group.rows(program.far_numbers(f"far_{program.outer_table}", program.outer, after))
        scores += group.spread_rows(rows)
    if program.has(f"far_{program.inner_table}"):
        inner = program.far_numbers(f"far_{program.inner_table}", number, 1 - after)
        scores += group.spread_columns(inner)
    return scores


def mask_scores(program: KernelProgram, scores: Any, number: Any) -> tuple[Any, Any]:
    """Returns the scaled and masked scores, and the mask (None if nothing is masked)."""
    group, refs, mask = program.group, program.refs, None
    scores = scores * (program.tiling.scale * LOG2E)
    if program.has("segment_ids"):
        ids = lambda block: refs["segment_ids"].at[program.example, 0, program.tokens(block)]
        outer, inner = group.spread_rows(group.rows(ids(program.outer))), group.spread_columns(ids(number))
        mask = jnp.logical_and(outer == inner, outer != 0)
    if program.has("attention_mask"):
        blocks = (program.outer, number) if program.query_outer else (number, program.outer)
        allowed = refs["attention_mask"].at[program.example, *(program.tokens(block) for block in blocks)]
        allowed = group.tile(allowed, transposed=not program.query_outer) != 0
        mask = allowed if mask is None else jnp.logical_and(mask, allowed)
    return (scores if mask is None else jnp.where(mask, scores, MASKED_SCORE)), mask


def kept_weights(program: KernelProgram, number: Any) -> Any:
    """Returns [S,S] True where dropout keeps the weight; None without dropout."""
    tiling, seeds = program.tiling, program.refs["seeds"]
    if tiling.dropout_rate == 0.0:
        return None
    unsigned = lambda x: x.astype(jnp.uint32)
    example, head = unsigned(program.example) + seeds[2], unsigned(program.head) + seeds[3]
    random_bits = head_random_bits((seeds[0], seeds[1]), example * jnp.uint32(tiling.all_heads) + head)
    row, column = (program.group.positions(axis, jnp.uint32) for axis in (0, 1))
    outer, inner = (unsigned(n * tiling.block_size) for n in (program.outer, number))
    outer, inner = row + outer, column + inner
    query, key = (outer, inner) if program.query_outer else (inner, outer)
    return is_weight_kept(random_bits, query, key, tiling.dropout_rate)


def for_each_inner(program: KernelProgram, step: Any, state: Any) -> Any:
    """Returns the state after ``state = step(state, number, scores, after)`` for each inner block, far ones first.

    Blocks that are masked before the first or after the last one with a pair are skipped. ``after`` is None for near
    blocks, else whether the far block comes after the outer one, an int32. ``scores`` is a function of the outer block.
    """
    tiling, group = program.tiling, program.group
    names = ("key", "value") if program.query_outer else ("query", "cotangent")
    first, end = jnp.int32(0), jnp.int32(tiling.blocks)
    if program.has("ranges"):
        first, end = (program.refs["ranges"][program.example, program.outer, side] for side in (0, 1))
    clip = lambda x, low, high: jnp.minimum(jnp.maximum(x, low), high)
    near = clip(program.outer + (program.far[0] + 1), first, end)
    far = clip(program.outer + program.far[1], near, end)

    def fetch(number):
        for name, buffer in zip(names, ("inner_buffer", "inner_value_buffer"), strict=True):
            group.fetch(program.block(name, number), program.refs[buffer])

    def far_step(n, state):
        after = (n >= near - first).astype(jnp.int32)
        number = first + n + after * (far - near)
        fetch(number)
        return step(state, number, lambda outer: far_scores(program, outer, number, after=after), after)

    def near_step(number, state):
        fetch(number)
        return step(state, number, lambda outer: near_scores(program, outer, number), None)

    if tiling.has_far:
        state = lax.fori_loop(0, (near - first) + (end - far), far_step, state)
    return lax.fori_loop(near, far, near_step, state)
