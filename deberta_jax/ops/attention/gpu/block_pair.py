"""Implements the operations of the GPU kernels on one pair of blocks, and its scores.

    score[i,j] = scale * (q_i.k_j + q_i.table_key[i-j] + k_j.table_query[i-j])

One block is *outer*, kept by a program; the other is *inner*, its loop variable. Score arrays are [outer, inner], S by
S. Which of the two holds the queries differs from kernel to kernel; everything here is the same for both. The outer
block meets its table in windows that advance by S rows with each inner block, so each step needs only the new half of
its products by distance. The inner block is new each time and needs both halves.

Triton has no relative shift within registers. Products by distance are stored in memory that belongs to the program,
[S,2S] float32, and row a is loaded from column S-1-a on. That memory is small and is rewritten all the time, so that
most of it should stay in the second-level cache.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from deberta_jax.ops.attention.dropout import head_random_bits, is_weight_kept
from deberta_jax.ops.attention.masks import MASKED_SCORE
from deberta_jax.ops.attention.pallas.layout import contract
from deberta_jax.ops.attention.pallas.tiling import Tiling
from deberta_jax.ops.products import F32


@dataclasses.dataclass(frozen=True)
class KernelProgram:
    """Describes what a program works on: one outer block of one example and head.

    Attributes:
      refs: whole arrays by name; ``outer_products`` and ``inner_products`` [programs * S * 2S] and ``d_scores``
        [programs * S * S] are scratch.
      query_outer: True if the outer block is one of queries.
      interpret: True in Pallas' interpreter.
      slot: number of the program, and of its part of the scratch.
      example, head, outer: numbers of the example, the head and the outer block.
    """

    tiling: Tiling
    refs: dict[str, Any]
    query_outer: bool
    interpret: bool
    slot: Any
    example: Any
    head: Any
    outer: Any

    def load_block(self, name: str, number: Any) -> Any:
        """Returns a block [S,H] of query, key or the like."""
        return self.refs[name][self.example, self.tokens(number), self._lanes()]

    def load_numbers(self, name: str, number: Any) -> Any:
        """Returns a block [S] of an array with one number for each token and head."""
        return self.refs[name][self.example, self.head, self.tokens(number)]

    def store_block(self, name: str, number: Any, value: Any) -> None:
        """Stores a block [S,H] of an output."""
        self.refs[name][self.example, self.tokens(number), self._lanes()] = value.astype(self.refs[name].dtype)

    def load_window(self, table: str, half: Any, halves: int = 1) -> Any:
        """Returns [S * halves, H] of a table by distance, from its half ``half`` on."""
        size = self.tiling.block_size
        return self.refs[table][pl.ds(half * size, halves * size), self._lanes()]

    def load_row(self, table: str, number: int) -> Any:
        """Returns one row [H] of a table by distance."""
        return self.refs[table][number, self._lanes()]

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

    def _lanes(self) -> Any:
        lanes = self.tiling.lanes_per_head
        return pl.ds(self.head * lanes, lanes)


def barrier(program: KernelProgram) -> None:
    """Waits until all threads of the program have finished their loads and stores so far."""
    if not program.interpret:
        plgpu.debug_barrier()


def _indices(rows: int, columns: int) -> tuple[Any, Any]:
    shape = (rows, columns)
    return lax.broadcasted_iota(jnp.int32, shape, 0), lax.broadcasted_iota(jnp.int32, shape, 1)


def store_outer_half(program: KernelProgram, outer: Any, half: Any) -> None:
    """Stores the products of the outer block with one half of its table; halves alternate in the scratch."""
    if program.outer_table not in program.refs:
        return
    size = program.tiling.block_size
    row, column = _indices(size, size)
    at = program.slot * (2 * size * size) + (half & 1) * size + row * (2 * size) + column
    products = contract(outer, program.load_window(program.outer_table, half), 1, 1)
    plgpu.store(program.refs["outer_products"].at[at], products)


def store_inner(program: KernelProgram, inner: Any, half: Any) -> None:
    """Stores the products of the inner block with both halves of its window."""
    if program.inner_table not in program.refs:
        return
    size = program.tiling.block_size
    row, column = _indices(size, 2 * size)
    at = program.slot * (2 * size * size) + row * (2 * size) + column
    products = contract(inner, program.load_window(program.inner_table, half, 2), 1, 1)
    plgpu.store(program.refs["inner_products"].at[at], products)


def _add_position_scores(program: KernelProgram, scores: Any, half: Any) -> Any:
    """Returns the scores plus both position terms, which are loaded from the scratch with a relative shift."""
    size = program.tiling.block_size
    row, column = _indices(size, size)
    start = program.slot * (2 * size * size)
    if program.outer_table in program.refs:
        shifted = ((half & 1) * size + size - 1 - row + column) & (2 * size - 1)
        scores += plgpu.load(program.refs["outer_products"].at[start + row * (2 * size) + shifted])
    if program.inner_table in program.refs:
        shifted = size - 1 - column + row
        scores += plgpu.load(program.refs["inner_products"].at[start + column * (2 * size) + shifted])
    return scores


def near_scores(program: KernelProgram, outer: Any, inner: Any, number: Any) -> Any:
    """Returns the sum of the three terms [S,S]. The scratch must hold the first half of the outer block's window."""
    outer_half, inner_half = program.first_halves(number)
    store_outer_half(program, outer, outer_half + 1)
    store_inner(program, inner, inner_half)
    barrier(program)
    scores = _add_position_scores(program, contract(outer, inner, 1, 1), outer_half)
    barrier(program)
    return scores


def far_rows(program: KernelProgram, *, after: bool) -> tuple[int, int]:
    """Returns the row of the outer and of the inner block's table that far blocks read, after or before the outer."""
    last = program.tiling.table_rows - 1
    return (last, 0) if after else (0, last)


def far_scores(program: KernelProgram, outer: Any, inner: Any, *, after: bool) -> Any:
    """Returns the sum of the three terms where all distances read one row: a number per row and one per column."""
    scores = contract(outer, inner, 1, 1)
    outer_row, inner_row = far_rows(program, after=after)
    if program.outer_table in program.refs:
        scores += _dot(outer, program.load_row(program.outer_table, outer_row))[:, None]
    if program.inner_table in program.refs:
        scores += _dot(inner, program.load_row(program.inner_table, inner_row))[None, :]
    return scores


def _dot(x: Any, row: Any) -> Any:
    return (x.astype(F32) * row.astype(F32)[None, :]).sum(axis=1)


def mask_scores(program: KernelProgram, scores: Any, number: Any) -> tuple[Any, Any]:
    """Returns the scaled and masked scores, and the mask (None if nothing is masked)."""
    scores, mask, refs = scores * program.tiling.scale, None, program.refs
    if "segment_ids" in refs:
        outer, inner = (refs["segment_ids"][program.example, 0, program.tokens(n)] for n in (program.outer, number))
        mask = (outer[:, None] == inner[None, :]) & (outer[:, None] != 0)
    if "attention_mask" in refs:
        blocks = (program.outer, number) if program.query_outer else (number, program.outer)
        allowed = refs["attention_mask"][program.example, *(program.tokens(n) for n in blocks)].astype(jnp.int32)
        allowed = (allowed if program.query_outer else allowed.T) != 0
        mask = allowed if mask is None else mask & allowed
    return (scores if mask is None else jnp.where(mask, scores, MASKED_SCORE)), mask


def kept_weights(program: KernelProgram, number: Any) -> Any:
    """Returns [S,S] True where dropout keeps the weight; None without dropout."""
    tiling, seeds = program.tiling, program.refs["seeds"]
    if tiling.dropout_rate == 0.0:
        return None
    unsigned = lambda x: x.astype(jnp.uint32)
    example, head = unsigned(program.example) + seeds[2], unsigned(program.head) + seeds[3]
    random_bits = head_random_bits((seeds[0], seeds[1]), example * jnp.uint32(tiling.all_heads) + head)
    row, column = _indices(tiling.block_size, tiling.block_size)
    outer, inner = unsigned(program.outer * tiling.block_size + row), unsigned(number * tiling.block_size + column)
    query, key = (outer, inner) if program.query_outer else (inner, outer)
    return is_weight_kept(random_bits, query, key, tiling.dropout_rate)


def store_d_scores(program: KernelProgram, d_scores: Any) -> None:
    """Stores dS of the pair in the scratch."""
    size = program.tiling.block_size
    row, column = _indices(size, size)
    plgpu.store(program.refs["d_scores"].at[program.slot * (size * size) + row * size + column], d_scores)
    barrier(program)


def rel_unshift(program: KernelProgram, *, of_outer: bool) -> Any:
    """Returns dS from the scratch in the order of the distances, [S,2S], zero where a row has no such distance.

    Args:
      of_outer: one row for each token of the outer block; otherwise of the inner one, from the transpose of dS.
    """
    size = program.tiling.block_size
    row, column = _indices(size, 2 * size)
    other = column - (size - 1) + row
    exists = (other >= 0) & (other < size)
    other = jnp.clip(other, 0, size - 1)
    at = row * size + other if of_outer else other * size + row
    ref = program.refs["d_scores"]
    return plgpu.load(ref.at[program.slot * (size * size) + at], mask=exists, other=jnp.zeros((), ref.dtype))


def for_each_inner(program: KernelProgram, outer: Any, step: Any, state: Any) -> Any:
    """Returns the state after ``state = step(state, number, inner block, scores, after)`` for each inner block.

    Blocks that are masked before the first or after the last one with a pair are skipped. ``after`` is None for near
    blocks, else whether the far block comes after the outer one.
    """
    tiling, name = program.tiling, "key" if program.query_outer else "query"
    first, end = jnp.int32(0), jnp.int32(tiling.blocks)
    if "ranges" in program.refs:
        first, end = (program.refs["ranges"][program.example, program.outer, side] for side in (0, 1))
    near = jnp.clip(program.outer + program.far[0] + 1, first, end)
    far = jnp.clip(program.outer + program.far[1], near, end)

    def far_step(after, number, state):
        inner = program.load_block(name, number)
        return step(state, number, inner, far_scores(program, outer, inner, after=after), after)

    def near_step(number, state):
        inner = program.load_block(name, number)
        return step(state, number, inner, near_scores(program, outer, inner, number), None)

    if program.far[0] > -tiling.blocks:
        state = lax.fori_loop(first, near, lambda n, s: far_step(False, n, s), state)
    # A block without an inner block has no window; any half will do.
    last_half = tiling.table_rows // tiling.block_size - 1
    store_outer_half(program, outer, jnp.clip(program.first_halves(near)[0], 0, last_half))
    state = lax.fori_loop(near, far, near_step, state)
    if program.far[1] < tiling.blocks:
        state = lax.fori_loop(far, end, lambda n, s: far_step(True, n, s), state)
    return state
