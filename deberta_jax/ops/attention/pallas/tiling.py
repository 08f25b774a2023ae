"""Chooses how a kernel divides its work: blocks of tokens, heads of a program, and rows of the tables by distance.

A program of a kernel handles one block of queries and one block of keys, S tokens each; on a TPU for as many heads as
fill 128 lanes. Heads are not moved apart: products over all 128 lanes, with the other heads' lanes set to zero, cost a
128-deep matrix unit the same. A GPU's program handles one head. All distances between two blocks lie in a window of 2S
rows of the tables by distance, and the window depends on the block offset D = key block - query block alone. From some
D on, all distances read one row (the buckets are logarithmic and clipped), the same for all blocks farther away: the
position terms are then one number for each query and one for each key, and the tables end there.
"""

import dataclasses
import functools

import numpy as np

TILE = 128  # lanes of a TPU's vector register
GPU_BLOCK = 64  # tokens of a GPU's block: the rows of a warpgroup's product
HOPPER = "9.0"  # compute capability of H100 and H200, the only one with wgmma
MOST_HOPPER_LANES = 128  # of a head
MAX_PROGRAMS = 264  # of a GPU's backward kernels: two for each of the 132 multiprocessors of an H100


@dataclasses.dataclass(frozen=True)
class KernelSizes:
    """Holds what is chosen automatically unless given.

    Attributes:
      block_size: tokens of a block; a multiple of 128 on a TPU, 64 on a GPU; any in Pallas' interpreter of the latter.
        None: automatic.
      max_programs: most programs of a GPU's backward kernel, each of which has sums of its own.
      hopper: whether a GPU's kernels take the operations of a Hopper; None: by its compute capability.
    """

    block_size: int | None = None
    max_programs: int = MAX_PROGRAMS
    hopper: bool | None = None


AUTOMATIC_SIZES = KernelSizes()


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Holds everything that is fixed when a kernel is traced; hashable.

    Attributes:
      length: tokens T of a row.
      block_size: tokens S of a block.
      blocks: number of blocks, with S * blocks >= T.
      heads, head_size: of the arrays given.
      padded_heads, lanes_per_head: of the arrays that the kernel receives.
      group: heads of one program.
      near: smallest and largest block offset that has a window; blocks farther away read the window at that end.
      far: largest negative and smallest positive block offset from which on all distances read one row.
      scale, dropout_rate: of the scores and of the dropout.
      all_heads: heads on all devices together, by which dropout numbers them.
      max_programs: most programs of a GPU's backward kernel.
      hopper: whether a GPU's kernels take the operations of a Hopper.
    """

    length: int
    block_size: int
    blocks: int
    heads: int
    head_size: int
    padded_heads: int
    lanes_per_head: int
    group: int
    near: tuple[int, int]
    far: tuple[int, int]
    scale: float
    dropout_rate: float
    all_heads: int
    max_programs: int = MAX_PROGRAMS
    hopper: bool = False

    @property
    def padded_length(self) -> int:
        """Tokens of all blocks together."""
        return self.block_size * self.blocks

    @property
    def lanes(self) -> int:
        """Lanes of one program."""
        return self.group * self.lanes_per_head

    @property
    def groups(self) -> int:
        """Number of groups of heads."""
        return self.padded_heads // self.group

    @property
    def strips(self) -> int:
        """Strips of 128 rows in a block."""
        return self.block_size // TILE

    @property
    def has_far(self) -> bool:
        """True if some blocks are far from one another."""
        return self.far[0] > -self.blocks or self.far[1] < self.blocks

    @property
    def table_rows(self) -> int:
        """Rows of each table by distance."""
        return (self.near[1] - self.near[0] + 2) * self.block_size

    @property
    def key_distances(self) -> np.ndarray:
        """Distance i - j of each row of ``table_key``: descending, int64 [table_rows]."""
        return self._clip(self.block_size - 1 - self.near[0] * self.block_size - np.arange(self.table_rows))

    @property
    def query_distances(self) -> np.ndarray:
        """Distance i - j of each row of ``table_query``: ascending, int64 [table_rows]."""
        return self._clip(1 - self.block_size - self.near[1] * self.block_size + np.arange(self.table_rows))

    def _clip(self, distance: np.ndarray) -> np.ndarray:
        """Returns the distances, those that only padding has replaced by the nearest real one, without effect."""
        return np.clip(distance, 1 - self.length, self.length - 1)


def make_tpu_tiling(
    length: int,
    heads: int,
    head_size: int,
    relative_index: np.ndarray,
    *,
    scale: float,
    dropout_rate: float,
    all_heads: int | None = None,
    sizes: KernelSizes = AUTOMATIC_SIZES,
) -> Tiling:
    """Returns the tiling of a TPU kernel: blocks, heads of a program, and where the far blocks begin."""
    block_size = sizes.block_size or tpu_block_size(length)
    lanes = max(32, 1 << (head_size - 1).bit_length()) if head_size <= TILE else -(-head_size // TILE) * TILE
    group = max(1, TILE // lanes)  # of few heads, some are padding
    return _divide(
        length,
        heads,
        head_size,
        relative_index,
        block_size=block_size,
        lanes_per_head=lanes,
        group=group,
        scale=scale,
        dropout_rate=dropout_rate,
        all_heads=all_heads or heads,
        max_programs=sizes.max_programs,
    )


def make_gpu_tiling(
    tiling: Tiling,
    relative_index: np.ndarray,
    *,
    capability: str,
    sizes: KernelSizes = AUTOMATIC_SIZES,
) -> Tiling:
    """Returns ``tiling`` for a GPU: one head per program, its size a power of two from 32 on.

    The operations of a Hopper are for capability 9.0 and heads of at most 128: shared memory holds no larger ones.

    Args:
      tiling: of the same call on a TPU.
      relative_index: table row of each distance.
      capability: compute capability of the GPU, such as "9.0".
      sizes: given sizes.
    """
    lanes = max(32, 1 << (tiling.head_size - 1).bit_length())
    hopper = capability == HOPPER if sizes.hopper is None else sizes.hopper
    divided = _divide(
        tiling.length,
        tiling.heads,
        tiling.head_size,
        relative_index,
        block_size=sizes.block_size or GPU_BLOCK,
        lanes_per_head=lanes,
        group=1,
        scale=tiling.scale,
        dropout_rate=tiling.dropout_rate,
        all_heads=tiling.all_heads,
        max_programs=sizes.max_programs,
    )
    return dataclasses.replace(divided, hopper=hopper and lanes <= MOST_HOPPER_LANES)


def tpu_block_size(length: int) -> int:
    """Returns the tokens of a block on a TPU: 128, 256, 384 or 512, for little padding and few programs.

    A wider block shares more of its position products (m tiles need m + 1 of them), so ties go to it.
    """
    tiles = -(-length // TILE)
    if tiles <= 4:
        return tiles * TILE
    counts = {m: -(-tiles // m) for m in (4, 3, 2, 1)}
    return TILE * min(counts, key=lambda m: counts[m] ** 2 * (m * m + 1))


def _divide(
    length: int,
    heads: int,
    head_size: int,
    relative_index: np.ndarray,
    *,
    block_size: int,
    lanes_per_head: int,
    group: int,
    scale: float,
    dropout_rate: float,
    all_heads: int,
    max_programs: int,
) -> Tiling:
    blocks = -(-length // block_size)
    first_far = functools.partial(_first_far, relative_index, length, block_size, blocks)
    far = first_far(sign=-1), first_far(sign=1)
    return Tiling(
        length=length,
        block_size=block_size,
        blocks=blocks,
        heads=heads,
        head_size=head_size,
        padded_heads=-(-heads // group) * group,
        lanes_per_head=lanes_per_head,
        group=group,
        near=(max(far[0], 1 - blocks), min(far[1], blocks - 1)),
        far=far,
        scale=scale,
        dropout_rate=dropout_rate,
        all_heads=all_heads,
        max_programs=max_programs,
    )


def _first_far(relative_index: np.ndarray, length: int, block_size: int, blocks: int, *, sign: int) -> int:
    """Returns the block offset nearest to 0, on one side, from which on all distances read one row.

    If there is none, returns an offset past all blocks.
    """
    for offset in range(1, blocks):
        smallest = offset * block_size - block_size + 1
        rows = relative_index[: length - smallest] if sign > 0 else relative_index[length - 1 + smallest :]
        if rows.size and np.all(rows == rows[0]):
            return sign * offset
    return sign * blocks
