"""Operations of the GPU kernels on one pair of blocks, and its scores.

    score[i,j] = scale * (q_i.k_j + q_i.EK[j-i] + k_j.EQ[j-i])

One block is *outer*, kept by a program, the other *inner*, its loop variable; tiles are [outer, inner], S by S. Which
of the two holds the queries differs from kernel to kernel, and everything here is the same for both: the outer block
meets its table in windows that move on by S rows with each inner block, so each step needs only the new half of its
products by distance; the inner block is new each time and needs both halves.

Triton has no shift within registers. Products by distance go to memory that belongs to the program, [S,2S] float32,
and come back with row a moved by S-1-a columns: it is small and rewritten all the time, so that most of it should stay
in the second-level cache.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from deberta_jax.ops import dropout
from deberta_jax.ops.attention.masks import MASKED
from deberta_jax.ops.attention.pallas.layout import product
from deberta_jax.ops.attention.pallas.tiling import Plan
from deberta_jax.ops.products import F32


@dataclasses.dataclass(frozen=True)
class Program:
    """What a program works on: one outer block of one example and head.

    Attributes:
      refs: arrays by name, whole; ``outer_scores`` and ``inner_scores`` [programs * S * 2S], ``d_scores``
        [programs * S * S] are scratch.
      slot: number of the program, and of its part of the scratch.
      query_outer: whether the outer block is one of queries.
    """

    plan: Plan
    refs: dict[str, Any]
    query_outer: bool
    interpret: bool
    slot: Any
    example: Any
    head: Any
    outer: Any

    def block(self, name: str, number: Any) -> Any:
        """[S,H] of query, key and the like."""
        return self.refs[name][self.example, self.tokens(number), self._lanes()]

    def numbers(self, name: str, number: Any) -> Any:
        """[S] of what has one number for each token and head."""
        return self.refs[name][self.example, self.head, self.tokens(number)]

    def put(self, name: str, number: Any, value: Any) -> None:
        self.refs[name][self.example, self.tokens(number), self._lanes()] = value.astype(self.refs[name].dtype)

    def window(self, table: str, half: Any, halves: int = 1) -> Any:
        """[S * halves, H] of a table by distance, from its half ``half`` on."""
        size = self.plan.block
        return self.refs[table][pl.ds(half * size, halves * size), self._lanes()]

    def row(self, table: str, number: int) -> Any:
        return self.refs[table][number, self._lanes()]

    @property
    def outer_table(self) -> str:
        return "table_key" if self.query_outer else "table_query"

    @property
    def inner_table(self) -> str:
        return "table_query" if self.query_outer else "table_key"

    @property
    def far(self) -> tuple[int, int]:
        """Largest negative and smallest positive inner - outer at which all distances read one row."""
        low, high = self.plan.far
        return (low, high) if self.query_outer else (-high, -low)

    def halves(self, inner: Any) -> tuple[Any, Any]:
        """First halves of the windows of the outer and the inner block's tables."""
        low, high = self.plan.nearest if self.query_outer else (-self.plan.nearest[1], -self.plan.nearest[0])
        apart = inner - self.outer
        return apart - low, high - apart

    def tokens(self, number: Any) -> Any:
        return pl.ds(number * self.plan.block, self.plan.block)

    def _lanes(self) -> Any:
        width = self.plan.lanes_per_head
        return pl.ds(self.head * width, width)


def barrier(program: Program) -> None:
    """Waits until all threads of the program have read and written what precedes."""
    if not program.interpret:
        plgpu.debug_barrier()


def _indices(rows: int, columns: int) -> tuple[Any, Any]:
    shape = (rows, columns)
    return lax.broadcasted_iota(jnp.int32, shape, 0), lax.broadcasted_iota(jnp.int32, shape, 1)


def put_outer_half(program: Program, outer: Any, half: Any) -> None:
    """Products of the outer block with one half of its table; the halves take turns in the scratch."""
    if program.outer_table not in program.refs:
        return
    size = program.plan.block
    row, column = _indices(size, size)
    at = program.slot * (2 * size * size) + (half & 1) * size + row * (2 * size) + column
    scores = product(outer, program.window(program.outer_table, half), 1, 1)
    plgpu.store(program.refs["outer_scores"].at[at], scores)


def put_inner(program: Program, inner: Any, half: Any) -> None:
    """Products of the inner block with both halves of its window."""
    if program.inner_table not in program.refs:
        return
    size = program.plan.block
    row, column = _indices(size, 2 * size)
    at = program.slot * (2 * size * size) + row * (2 * size) + column
    scores = product(inner, program.window(program.inner_table, half, 2), 1, 1)
    plgpu.store(program.refs["inner_scores"].at[at], scores)


def _add_position_scores(program: Program, scores: Any, half: Any) -> Any:
    """Adds both terms from the scratch, each row, or column, moved to where it belongs."""
    size = program.plan.block
    row, column = _indices(size, size)
    start = program.slot * (2 * size * size)
    if program.outer_table in program.refs:
        across = ((half & 1) * size + size - 1 - row + column) & (2 * size - 1)
        scores += plgpu.load(program.refs["outer_scores"].at[start + row * (2 * size) + across])
    if program.inner_table in program.refs:
        across = size - 1 - column + row
        scores += plgpu.load(program.refs["inner_scores"].at[start + column * (2 * size) + across])
    return scores


def near_scores(program: Program, outer: Any, inner: Any, number: Any) -> Any:
    """Sum of the three terms, [S,S]. The first half of the outer block's window stands in the scratch already."""
    outer_half, inner_half = program.halves(number)
    put_outer_half(program, outer, outer_half + 1)
    put_inner(program, inner, inner_half)
    barrier(program)
    scores = _add_position_scores(program, product(outer, inner, 1, 1), outer_half)
    barrier(program)
    return scores


def far_rows(program: Program, *, after: bool) -> tuple[int, int]:
    """The one row of the outer and the inner block's tables that far blocks read, before or after the outer block."""
    last = program.plan.table_rows - 1
    return (last, 0) if after else (0, last)


def far_scores(program: Program, outer: Any, inner: Any, *, after: bool) -> Any:
    """The same where all distances read one row: a number for each row and one for each column."""
    scores = product(outer, inner, 1, 1)
    outer_row, inner_row = far_rows(program, after=after)
    if program.outer_table in program.refs:
        scores += _dot(outer, program.row(program.outer_table, outer_row))[:, None]
    if program.inner_table in program.refs:
        scores += _dot(inner, program.row(program.inner_table, inner_row))[None, :]
    return scores


def _dot(x: Any, row: Any) -> Any:
    return (x.astype(F32) * row.astype(F32)[None, :]).sum(axis=1)


def masked(program: Program, scores: Any, number: Any) -> tuple[Any, Any]:
    """Scaled scores, masked, and what is visible (None: everything)."""
    scores, seen, refs = scores * program.plan.scale, None, program.refs
    if "texts" in refs:
        outer, inner = (refs["texts"][program.example, 0, program.tokens(n)] for n in (program.outer, number))
        seen = (outer[:, None] == inner[None, :]) & (outer[:, None] != 0)
    if "pairs" in refs:
        blocks = (program.outer, number) if program.query_outer else (number, program.outer)
        allowed = refs["pairs"][program.example, *(program.tokens(n) for n in blocks)].astype(jnp.int32)
        allowed = (allowed if program.query_outer else allowed.T) != 0
        seen = allowed if seen is None else seen & allowed
    return (scores if seen is None else jnp.where(seen, scores, MASKED)), seen


def kept(program: Program, number: Any) -> Any:
    """[S,S] True where dropout keeps the weight; None where there is no dropout."""
    plan, seeds = program.plan, program.refs["seeds"]
    if plan.rate == 0.0:
        return None
    unsigned = lambda x: x.astype(jnp.uint32)
    example, head = unsigned(program.example) + seeds[2], unsigned(program.head) + seeds[3]
    words = dropout.stream((seeds[0], seeds[1]), example * jnp.uint32(plan.all_heads) + head)
    row, column = _indices(plan.block, plan.block)
    outer, inner = unsigned(program.outer * plan.block + row), unsigned(number * plan.block + column)
    query, key = (outer, inner) if program.query_outer else (inner, outer)
    return dropout.kept(words, query, key, plan.rate)


def put_d_scores(program: Program, d_scores: Any) -> None:
    size = program.plan.block
    row, column = _indices(size, size)
    plgpu.store(program.refs["d_scores"].at[program.slot * (size * size) + row * size + column], d_scores)
    barrier(program)


def by_distance(program: Program, *, of_outer: bool) -> Any:
    """dS from the scratch in the order of the distances, [S,2S], zero where a row has no such distance.

    One row for each token of the outer block; else for each of the inner one, that is from dS turned.
    """
    size = program.plan.block
    row, column = _indices(size, 2 * size)
    other = column - (size - 1) + row
    real = (other >= 0) & (other < size)
    other = jnp.clip(other, 0, size - 1)
    at = row * size + other if of_outer else other * size + row
    ref = program.refs["d_scores"]
    return plgpu.load(ref.at[program.slot * (size * size) + at], mask=real, other=jnp.zeros((), ref.dtype))


def each_inner(program: Program, outer: Any, step: Any, state: Any) -> Any:
    """``state = step(state, number, inner block, scores, after)`` over the visible inner blocks.

    ``after`` is None for near blocks, else whether the far block stands after the outer one.
    """
    plan, name = program.plan, "key" if program.query_outer else "query"
    first, end = jnp.int32(0), jnp.int32(plan.blocks)
    if "ranges" in program.refs:
        first, end = (program.refs["ranges"][program.example, program.outer, side] for side in (0, 1))
    near = jnp.clip(program.outer + program.far[0] + 1, first, end)
    far = jnp.clip(program.outer + program.far[1], near, end)

    def at_far(after, number, state):
        inner = program.block(name, number)
        return step(state, number, inner, far_scores(program, outer, inner, after=after), after)

    def at_near(number, state):
        inner = program.block(name, number)
        return step(state, number, inner, near_scores(program, outer, inner, number), None)

    if program.far[0] > -plan.blocks:
        state = lax.fori_loop(first, near, lambda n, s: at_far(False, n, s), state)
    # A block that sees none has no window; any half will do.
    put_outer_half(program, outer, jnp.clip(program.halves(near)[0], 0, plan.table_rows // plan.block - 1))
    state = lax.fori_loop(near, far, at_near, state)
    if program.far[1] < plan.blocks:
        state = lax.fori_loop(far, end, lambda n, s: at_far(True, n, s), state)
    return state
