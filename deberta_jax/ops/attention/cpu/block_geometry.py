"""Chooses how the blocked implementation divides a text: blocks of queries, tiles, and a window of near keys."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Holds the limits that a division keeps to, measured on a CPU: large products are fast until they leave the cache.

    Attributes:
      scores: scores of the examples computed at a time, and of a block as long as it keeps ``min_queries`` queries.
      min_queries: most queries of a block of a long text.
      max_queries: most queries of a block of a short text.
      tile: most rows of a tile. With fewer rows less of each position product is wasted, but small products are slow.
    """

    scores: int = 1 << 19
    min_queries: int = 256
    max_queries: int = 512
    tile: int = 128


MEASURED_SIZES = BlockSizes()


@dataclasses.dataclass(frozen=True)
class BlockGeometry:
    """Holds how a text is divided, in tokens; all static.

    Attributes:
      length: of the padded text, ``blocks * block_size``.
      block_size: queries of a block, whose scores [block_size, length] are held at once.
      near: keys in the window around a block. Keys outside are so far away that all distances on a side read one row.
      tile: rows of a tile; its position product has ``tile`` more columns than the tile has keys.
    """

    length: int
    block_size: int
    near: int
    tile: int

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.length // self.block_size

    @property
    def all_near(self) -> bool:
        """True if every key is near every block."""
        return self.near == self.length

    def first_near_key(self, first_query):
        """Returns the first key of the near window of the block that starts at ``first_query``."""
        if self.all_near:
            return 0
        return jnp.clip(first_query - (self.near - self.block_size) // 2, 0, self.length - self.near)


def divide(length: int, relative_index: Int[np.ndarray, " U"], sizes: BlockSizes) -> BlockGeometry:
    """Returns equal blocks of equal tiles, padded by fewer tokens than there are tiles, and the near window."""
    blocks = math.ceil(length / min(sizes.max_queries, max(sizes.min_queries, sizes.scores // length)))
    tiles = blocks * math.ceil(length / (blocks * sizes.tile))
    tile = math.ceil(length / tiles)
    block_size = tiles * tile // blocks
    side = tile * math.ceil(far_distance(relative_index) / tile)
    return BlockGeometry(tiles * tile, block_size, min(tiles * tile, block_size + 2 * side), tile)


def far_distance(relative_index: Int[np.ndarray, " U"]) -> int:
    """Returns the smallest distance from which on, in both directions, all distances read one row."""
    length = (len(relative_index) + 1) // 2
    constant = (np.argmax(np.append(side != side[0], True)) for side in (relative_index, relative_index[::-1]))
    return length - int(min(length, *constant))
