"""How a kernel divides its work: blocks of tokens, heads of a program, and which distances the tables must hold.

A program of a kernel meets one block of queries and one block of keys, S tokens each; on a TPU for as many heads as
fill 128 lanes. Heads are not moved apart: products over all 128 lanes with the other heads' lanes set to zero cost a
128-deep matrix unit the same. A GPU's program takes one head. All distances between the blocks lie in a window of 2S
rows of the tables by distance, and that window depends on the blocks' difference D = key block - query block alone.
Beyond some D all distances read one row (the buckets are logarithmic and clipped), the same for all farther blocks:
there the position terms are one number for each query and one for each key, and the tables end.
"""

import dataclasses

import numpy as np

TILE = 128  # lanes of a vector register


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is fixed when the kernels are traced; hashable.

    Attributes:
      length, block, blocks: tokens T; tokens S of a block; number of blocks, with S * blocks >= T.
      heads, head_size: given; ``padded_heads`` and ``lanes_per_head`` are what the kernel sees.
      group: heads of one program.
      nearest: smallest and largest D whose table windows exist; farther blocks read the window at the end.
      far: the largest negative and the smallest positive D, and beyond, at which all distances read one row.
      scale, rate: of the scores and of the dropout.
      all_heads: heads on all devices together, by which dropout numbers them.
    """

    length: int
    block: int
    blocks: int
    heads: int
    head_size: int
    padded_heads: int
    lanes_per_head: int
    group: int
    nearest: tuple[int, int]
    far: tuple[int, int]
    scale: float
    rate: float
    all_heads: int

    @property
    def padded_length(self) -> int:
        return self.block * self.blocks

    @property
    def lanes(self) -> int:
        """Lanes of one program."""
        return self.group * self.lanes_per_head

    @property
    def groups(self) -> int:
        return self.padded_heads // self.group

    @property
    def strips(self) -> int:
        """Strips of 128 rows in a block."""
        return self.block // TILE

    @property
    def table_rows(self) -> int:
        return (self.nearest[1] - self.nearest[0] + 2) * self.block

    @property
    def key_distances(self) -> np.ndarray:
        """Distance i - j of each row of EK: descending, int64 [table_rows]."""
        return self._real(self.block - 1 - self.nearest[0] * self.block - np.arange(self.table_rows))

    @property
    def query_distances(self) -> np.ndarray:
        """Distance i - j of each row of EQ: ascending, int64 [table_rows]."""
        return self._real(1 - self.block - self.nearest[1] * self.block + np.arange(self.table_rows))

    def _real(self, distance: np.ndarray) -> np.ndarray:
        """Distances that only padding has read the row of the nearest real one, without effect."""
        return np.clip(distance, 1 - self.length, self.length - 1)


def make_plan(
    length: int,
    heads: int,
    head_size: int,
    rows: np.ndarray,
    *,
    scale: float,
    rate: float,
    all_heads: int | None = None,
) -> Plan:
    """For a TPU: chooses blocks and heads of a program, and finds where the far blocks begin."""
    block = block_size(length)
    lanes = max(32, 1 << (head_size - 1).bit_length()) if head_size <= TILE else -(-head_size // TILE) * TILE
    group = min(heads, max(1, TILE // lanes))
    return _divide(length, heads, head_size, rows, block, lanes, group, scale, rate, all_heads)


def make_gpu_plan(plan: Plan, rows: np.ndarray, itemsize: int, *, backward: bool) -> Plan:
    """``plan`` for a GPU: one head a program, its size rounded up to a power of two as Triton's arrays must be."""
    lanes = max(16, 1 << (plan.head_size - 1).bit_length())
    block = gpu_block_size(itemsize, lanes, backward=backward)
    given = plan.length, plan.heads, plan.head_size, rows
    return _divide(*given, block, lanes, 1, plan.scale, plan.rate, plan.all_heads)


def gpu_block_size(itemsize: int, lanes: int, *, backward: bool) -> int:
    """Tokens of a block: as many as the registers hold. Float32 products are not those of the matrix units, and need
    more of them."""
    if itemsize == 4:
        return 16
    return 32 if backward or lanes > 64 else 64


def _divide(length, heads, head_size, rows, block, lanes, group, scale, rate, all_heads) -> Plan:
    blocks = -(-length // block)
    far = _first_far(rows, length, block, blocks, sign=-1), _first_far(rows, length, block, blocks, sign=1)
    return Plan(
        length=length,
        block=block,
        blocks=blocks,
        heads=heads,
        head_size=head_size,
        padded_heads=-(-heads // group) * group,
        lanes_per_head=lanes,
        group=group,
        nearest=(max(far[0], 1 - blocks), min(far[1], blocks - 1)),
        far=far,
        scale=scale,
        rate=rate,
        all_heads=all_heads or heads,
    )


def block_size(length: int) -> int:
    """Tokens of a block: 128, 256, 384 or 512, so that padding and the number of programs are small together.

    A wider block shares more of its position products (m tiles need m + 1 of them), so ties go to it.
    """
    tiles = -(-length // TILE)
    if tiles <= 4:
        return tiles * TILE
    counts = {m: -(-tiles // m) for m in (4, 3, 2, 1)}
    return TILE * min(counts, key=lambda m: counts[m] ** 2 * (m * m + 1))


def _first_far(rows: np.ndarray, length: int, block: int, blocks: int, *, sign: int) -> int:
    """The D nearest to 0 on this side from which on every distance reads the same row; past all blocks if none."""
    for apart in range(1, blocks):
        nearest_distance = apart * block - block + 1
        reached = rows[: length - nearest_distance] if sign > 0 else rows[length - 1 + nearest_distance :]
        if reached.size and np.all(reached == reached[0]):
            return sign * apart
    return sign * blocks
