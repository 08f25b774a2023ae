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

    def stage(self, name: str, slot: Any = 0) -> list[Any]:
        """Returns the chunks of a block's place in shared memory: ``slot`` of the buffer of that name."""
        chunks = self.group.chunks
        return [self.refs[f"{name}_buffer"].at[slot * chunks + n] for n in range(chunks)]

    def barrier(self, name: str, slot: Any = None) -> Any:
        """Returns the barrier that copies to a buffer count on; None where copies are at once."""
        barrier = self.refs.get(f"{name}_barrier")
        return barrier if barrier is None or slot is None else barrier.at[slot]

    def copies(self, name: str, number: Any, stage: str, slot: Any = 0) -> list[tuple[Any, Any]]:
        """Returns source and target of each chunk of a block of tokens."""
        return list(zip(self.block(name, number), self.stage(stage, slot), strict=True))

    def table_copies(self, table: str, block: Any, stage: str, slot: Any) -> list[tuple[Any, Any]]:
        """Returns source and target of each chunk of a block of a table by distance."""
        source = [self.refs[table].at[self.tokens(block), lanes] for lanes in self.lanes()]
        return list(zip(source, self.stage(stage, slot), strict=True))

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


@dataclasses.dataclass(frozen=True)
class Inner:
    """Describes the inner block at hand.

    Attributes:
      number: of the block.
      content, value: its keys and values, or queries and cotangent, in shared memory.
      after: None for a near block, else whether the far block comes after the outer one, int32.
      release: to be called when neither scores nor windows are read any more, once.
    """

    number: Any
    content: list[Any]
    value: list[Any]
    after: Any
    release: Callable[[], None]


def load_outer(program: KernelProgram, *names: str) -> list[Chunks]:
    """Returns arrays of the outer block as left sides of products."""
    group, stages = program.group, ("outer", "outer_value")
    if group.keeps_blocks:
        named = zip(names, stages, strict=False)
        pairs = [pair for name, stage in named for pair in program.copies(name, program.outer, stage)]
        group.copy(pairs, program.barrier("outer"))
        group.wait(program.barrier("outer"))
        return [group.left(program.stage(stage)) for stage in stages[: len(names)]]
    blocks = [program.block(name, program.outer) for name in names]
    first = (group.left if group.chunks == 1 else group.left_anew)(blocks[0])
    return [first, *map(group.left_anew, blocks[1:])]


def outer_right(program: KernelProgram, name: str) -> list[Any]:
    """Returns the first array of the outer block in shared memory, where it may take the inner block's place."""
    if program.group.keeps_blocks:
        return program.stage("outer")
    program.group.copy(program.copies(name, program.outer, "inner"), None)
    return program.stage("inner")


def half_window(program: KernelProgram, table: str, first: Any, half: int) -> list[Any]:
    """Returns one half of a pair's window of a table, block ``first + half``, in shared memory.

    Halves are asked for in turn. Where shared memory does not keep windows, a second table takes the first one's place.
    """
    group = program.group
    if group.keeps_blocks:
        return program.stage(table, lax.rem(first + half, jnp.int32(2)))
    if half % group.window_blocks == 0:
        pairs = []
        for slot in range(group.window_blocks):
            pairs += program.table_copies(table, first + half + slot, "window", slot)
        group.copy(pairs, None)
    return program.stage("window", half % group.window_blocks)


def fetch_windows(program: KernelProgram, number: Any, *, new: bool) -> None:
    """Starts to fetch the halves of a pair's windows that the pair before it does not read; if not ``new``, the others.

    From one inner block to the next the outer block's window ascends by a block, the inner block's descends.
    """
    pairs = []
    for table, first in zip((program.outer_table, program.inner_table), program.first_halves(number), strict=True):
        if program.has(table):
            block = first + int((table == program.outer_table) == new)
            pairs += program.table_copies(table, block, table, lax.rem(block, jnp.int32(2)))
    program.group.copy(pairs, program.barrier("window"))


def near_scores(program: KernelProgram, outer: Chunks, inner: Inner) -> Any:
    """Returns the sum of the three terms [S,S], unscaled."""
    group = program.group
    scores = group.times(outer, inner.content)
    halves = dict(zip((program.outer_table, program.inner_table), program.first_halves(inner.number), strict=True))
    for table, transposed in ((program.inner_table, True), (program.outer_table, False)):
        if not program.has(table):
            continue
        products, left = program.refs["products_buffer"], group.left_anew(inner.content) if transposed else outer
        for half in range(2):
            group.put_products(products, half, group.times(left, half_window(program, table, halves[table], half)))
        scores += group.take_scores(products, transposed=transposed)
    return scores


def far_scores(program: KernelProgram, outer: Chunks, inner: Inner) -> Any:
    """Returns the sum of the three terms where all distances read one row: a number per row and one per column."""
    group = program.group
    scores = group.times(outer, inner.content)
    if program.has(f"far_{program.outer_table}"):
        rows = group.rows(program.far_numbers(f"far_{program.outer_table}", program.outer, inner.after))
        scores += group.spread_rows(rows)
    if program.has(f"far_{program.inner_table}"):
        numbers = program.far_numbers(f"far_{program.inner_table}", inner.number, 1 - inner.after)
        scores += group.spread_columns(numbers)
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


def _inner_ranges(program: KernelProgram) -> tuple[Any, Any, Any, Any]:
    """Returns the first inner block, the first near one, the first far one after it, and one past the last."""
    first, end = jnp.int32(0), jnp.int32(program.tiling.blocks)
    if program.has("ranges"):
        first, end = (program.refs["ranges"][program.example, program.outer, side] for side in (0, 1))
    clip = lambda x, low, high: jnp.minimum(jnp.maximum(x, low), high)
    near = clip(program.outer + (program.far[0] + 1), first, end)
    return first, near, clip(program.outer + program.far[1], near, end), end


def for_each_inner(program: KernelProgram, step: Any, state: Any) -> Any:
    """Returns the state after ``state = step(state, inner, scores)`` for each inner block, far ones first.

    Blocks that are masked before the first or after the last one with a pair are skipped. ``scores`` is a function of
    the outer block.
    """
    group = program.group
    first, near, far, end = _inner_ranges(program)
    before, count = near - first, (near - first) + (end - far)  # of far blocks
    windows = group.keeps_blocks and bool(group.tables)
    names = ("key", "value") if program.query_outer else ("query", "cotangent")
    slot_of = lambda n: lax.rem(n, jnp.int32(group.slots)) if group.slots > 1 else 0

    def begin(n: Any, after: Any, release: Callable[[Any], None]) -> Inner:
        """Returns the inner block of step ``n``, when it has been fetched."""
        number = near + (n - count) if after is None else first + n + after * (far - near)
        slot = slot_of(n)
        if group.slots == 1:
            fetch(n)
        else:
            pl.when(n + 1 < end - first)(lambda: fetch(n + 1))
        group.wait(program.barrier("inner", slot))
        content, value = (program.stage(name, slot) for name in ("inner", "inner_value"))
        return Inner(number, content, value, after, lambda: release(number))

    def fetch(n: Any) -> None:
        number = jnp.where(n < before, first + n, jnp.where(n < count, far + (n - before), near + (n - count)))
        slot, stages = slot_of(n), zip(names, ("inner", "inner_value"), strict=True)
        pairs = [pair for name, stage in stages for pair in program.copies(name, number, stage, slot)]
        group.copy(pairs, program.barrier("inner", slot))

    def far_step(n: Any, state: Any) -> Any:
        inner = begin(n, (n >= before).astype(jnp.int32), lambda number: None)
        return step(state, inner, lambda outer: far_scores(program, outer, inner))

    def next_windows(number: Any) -> None:
        if windows:
            pl.when(number + 1 < far)(lambda: fetch_windows(program, number + 1, new=True))

    def near_step(n: Any, state: Any) -> Any:
        inner = begin(n, None, next_windows)
        if windows:
            group.wait(program.barrier("window"))
        return step(state, inner, lambda outer: near_scores(program, outer, inner))

    def first_windows() -> None:
        fetch_windows(program, near, new=False)
        group.wait(program.barrier("window"))
        fetch_windows(program, near, new=True)

    if group.slots > 1:
        pl.when(first < end)(lambda: fetch(jnp.int32(0)))
    if windows:
        pl.when(near < far)(first_windows)
    if program.tiling.has_far:
        state = lax.fori_loop(0, count, far_step, state)
    return lax.fori_loop(count, end - first, near_step, state)
