"""Implements the operations of the TPU kernels on strips of 128 rows, and shifts their scores by distance.

``table_key`` is ordered by descending distance i - j, ``table_query`` by ascending, so that both are sliced and shifted
alike. A tile is [128,128].
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from deberta_jax.ops.attention.pallas.tiling import TILE, Tiling


def _lanes_and_rows() -> tuple[jax.Array, jax.Array]:
    lane = lax.broadcasted_iota(jnp.int32, (TILE, TILE), 1)
    return lane, lax.broadcasted_iota(jnp.int32, (TILE, TILE), 0)


def rel_shift(x: Any) -> Any:
    """Returns out[i,b] = x[i, 127-i+b], [128,m], for x [128,m+128].

    Of two neighbouring tiles, the left one is read from lane 127-i on and the right one before it: select, then roll
    that one tile.
    """
    lane, row = _lanes_and_rows()
    left = lane >= TILE - 1 - row
    tiles = [x[:, start : start + TILE] for start in range(0, x.shape[1], TILE)]
    selected = [jnp.where(left, a, b) for a, b in itertools.pairwise(tiles)]
    rolled = [roll_rows(tile) for tile in selected]
    return rolled[0] if len(rolled) == 1 else jnp.concatenate(rolled, axis=1)


def roll_rows(tile: Any) -> Any:
    """Returns a tile whose row i is rolled by i+1 lanes to the right.

    Mosaic refuses rolls in which the 8 rows of a register straddle a multiple of 128; if the first row is rolled by 1,
    none does. In the interpreter a gather gives the same: its roll is 128 operations, which take seconds to compile.
    Within a kernel the platform of a TPU is called "mosaic"; "tpu" would never be chosen.
    """
    lane, row = _lanes_and_rows()
    return lax.platform_dependent(
        tile,
        mosaic=roll_rows_on_tpu,
        default=lambda tile: jnp.take_along_axis(tile, (lane - row - 1) & (TILE - 1), axis=1),
    )


def roll_rows_on_tpu(tile: Any) -> Any:
    """Returns ``roll_rows`` by the TPU's own strided roll."""
    return pltpu.roll(tile, 1, 1, stride=1, stride_axis=0)


def rel_unshift(y: Any) -> Any:
    """Returns the transpose of ``rel_shift``: out[i, 127-i+b] = y[i,b], [128,m+128], zero elsewhere, for y [128,m].

    Row i is rolled left by i+1. Mosaic has no negative stride, so a gather of lanes within a register does it.
    """
    lane, row = _lanes_and_rows()
    left, source = lane >= TILE - 1 - row, (lane + row + 1) & (TILE - 1)
    tiles = [y[:, start : start + TILE] for start in range(0, y.shape[1], TILE)]
    rolled = [jnp.take_along_axis(tile, source, axis=1) for tile in tiles]
    zeros = jnp.zeros((TILE, TILE), y.dtype)
    before, after = [zeros, *rolled], [*rolled, zeros]
    return jnp.concatenate([jnp.where(left, b, a) for a, b in zip(before, after, strict=True)], axis=1)


def strip(n: int) -> slice:
    """Returns the slice of strip n."""
    return slice(n * TILE, (n + 1) * TILE)


def tiles_of(x: Any) -> list[Any]:
    """Returns the tiles [128,128] of [128,m]."""
    return [x[:, start : start + TILE] for start in range(0, x.shape[1], TILE)]


def joined(tiles: list[Any], axis: int = 1) -> Any:
    """Returns tiles side by side, or below one another."""
    return tiles[0] if len(tiles) == 1 else jnp.concatenate(tiles, axis=axis)


def replicated_column(row: Any) -> Any:
    """Returns the tile [128,128] whose row i holds number i of ``row`` [1,128] in all lanes."""
    return jnp.broadcast_to(row, (TILE, TILE)).T


def in_lanes(tiling: Tiling, x: Any) -> Any:
    """Returns numbers of queries, [128,1] or in all lanes [128,128], in all lanes [128,W] of a program."""
    return jnp.broadcast_to(x, (TILE, tiling.lanes)) if x.shape[1] == 1 else joined([x] * (tiling.lanes // TILE))


def mask_other_heads(x: Any, tiling: Tiling, head: int) -> Any:
    """Returns ``x`` [S,W] with the lanes of the program's other heads set to zero."""
    if tiling.group == 1:
        return x
    return jnp.where(is_lane_of(tiling, head, x.shape), x, jnp.zeros_like(x))


def is_lane_of(tiling: Tiling, head: int, shape: tuple[int, ...]) -> Any:
    """Returns True in the lanes of a head of the program."""
    lane = lax.broadcasted_iota(jnp.int32, shape, 1)
    return (lane >= head * tiling.lanes_per_head) & (lane < (head + 1) * tiling.lanes_per_head)


def strip_window(tiling: Tiling, n: int) -> range:
    """Returns the tiles of a table window that strip n meets: of 128 rows, one more than a block has."""
    return range(tiling.strips - 1 - n, 2 * tiling.strips - n)
