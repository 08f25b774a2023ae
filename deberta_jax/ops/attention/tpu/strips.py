"""Implements the operations of the TPU kernels on strips of 128 rows, and the scores of a pair of blocks.

    score[i,j] = scale * (q_i.k_j + q_i.table_key[i-j] + k_j.table_query[i-j])

``table_key`` is ordered by descending distance i - j, ``table_query`` by ascending, so that both are sliced and shifted
alike. A tile is [128,128].
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from deberta_jax.ops.attention.dropout import head_random_bits, is_weight_kept
from deberta_jax.ops.attention.masks import MASKED_SCORE
from deberta_jax.ops.attention.pallas.layout import contract
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


def to_column(row: Any) -> Any:
    """Returns [1,128] as [128,1]."""
    return jnp.broadcast_to(row, (TILE, TILE)).T[:, :1]


def to_row(column: Any) -> Any:
    """Returns [128,1] as [1,128]."""
    return jnp.broadcast_to(column, (TILE, TILE)).T[:1]


def mask_other_heads(x: Any, tiling: Tiling, head: int) -> Any:
    """Returns ``x`` [S,W] with the lanes of the program's other heads set to zero."""
    if tiling.group == 1:
        return x
    return jnp.where(is_lane_of(tiling, head, x.shape), x, jnp.zeros_like(x))


def is_lane_of(tiling: Tiling, head: int, shape: tuple[int, ...]) -> Any:
    """Returns True in the lanes of a head of the program."""
    lane = lax.broadcasted_iota(jnp.int32, shape, 1)
    return (lane >= head * tiling.lanes_per_head) & (lane < (head + 1) * tiling.lanes_per_head)


def for_each_strip(tiling: Tiling, visit: Any) -> None:
    """Calls ``visit(number, slice)`` for each strip of 128 rows of a block."""
    if tiling.strips == 1:
        visit(0, pl.ds(0, TILE))
        return

    @pl.loop(0, tiling.strips)
    def _(n):
        visit(n, pl.ds(pl.multiple_of(n * TILE, TILE), TILE))


def strip_window(tiling: Tiling, n: Any) -> Any:
    """Returns the slice of a table window that strip n meets: S+128 rows of 2S."""
    start = tiling.block_size - (n + 1) * TILE
    return pl.ds(start if isinstance(n, int) else pl.multiple_of(start, TILE), tiling.block_size + TILE)


def near_or_far(tiling: Tiling, offset: Any, near: Any, far: Any) -> None:
    """Calls ``far()`` in programs whose blocks are far from one another, ``near()`` in the others."""
    if not tiling.has_far:
        near()
        return
    is_far = (offset <= tiling.far[0]) | (offset >= tiling.far[1])
    pl.when(is_far)(far)
    pl.when(jnp.logical_not(is_far))(near)


def put_position_scores(tiling: Tiling, refs: dict[str, Any], head: int, offset: Any) -> None:
    """Stores the position scores of a pair of blocks, both terms, in ``refs["position_scores"]`` [S,S]."""
    if "position_scores" not in refs:
        return
    out, query, key = refs["position_scores"], refs["query"], refs["key"]
    table_key, table_query = refs.get("table_key"), refs.get("table_query")

    def p2c(n, at):
        assert table_query is not None
        keys = mask_other_heads(key[0, at], tiling, head)
        out[:, at] = rel_shift(contract(keys, table_query[strip_window(tiling, n)], 1, 1)).T

    def c2p(n, at):
        assert table_key is not None
        queries = mask_other_heads(query[0, at], tiling, head)
        scores = rel_shift(contract(queries, table_key[strip_window(tiling, n)], 1, 1))
        out[at] = scores + (0.0 if table_query is None else out[at])

    def near():
        if table_query is not None:
            for_each_strip(tiling, p2c)
        if table_key is not None:
            for_each_strip(tiling, c2p)

    def far():
        # All rows of the window are one row: a tile of it gives the same number in all lanes, or in all rows.
        per_key = (
            0.0
            if table_query is None
            else contract(table_query[pl.ds(0, TILE)], mask_other_heads(key[0], tiling, head), 1, 1)
        )

        def one_row(n, at):
            scores = jnp.broadcast_to(per_key, (TILE, tiling.block_size))
            if table_key is not None:
                queries = mask_other_heads(query[0, at], tiling, head)
                scores += contract(queries, table_key[pl.ds(0, TILE)], 1, 1)[:, :1]
            out[at] = scores

        for_each_strip(tiling, one_row)

    near_or_far(tiling, offset, near, far)


def strip_mask(refs: dict[str, Any], at: Any) -> Any:
    """Returns [128,S] True where the strip's queries may attend to the block's keys; None if nothing is masked."""
    mask = None
    if "query_segment_ids" in refs:
        of_queries, of_keys = to_column(refs["query_segment_ids"][0, :, at]), refs["key_segment_ids"][0]
        mask = (of_queries == of_keys) & (of_keys != 0)
    if "attention_mask" in refs:
        allowed = refs["attention_mask"][0, at].astype(jnp.int32) != 0
        mask = allowed if mask is None else mask & allowed
    return mask


def strip_scores(tiling: Tiling, refs: dict[str, Any], query: Any, at: Any) -> tuple[Any, Any]:
    """Returns the scaled and masked scores [128,S] of a strip's queries [128,W] and the block's keys, and the mask."""
    scores = contract(query, refs["key"][0], 1, 1)
    if "position_scores" in refs:
        scores += refs["position_scores"][at]
    scores *= tiling.scale
    mask = strip_mask(refs, at)
    return (scores if mask is None else jnp.where(mask, scores, MASKED_SCORE)), mask


def strip_kept(tiling: Tiling, random_bits: Any, n: Any, query_block: Any, key_block: Any) -> Any:
    """Returns [128,S] True where dropout keeps the weight."""
    shape = (TILE, tiling.block_size)
    query = lax.broadcasted_iota(jnp.int32, shape, 0) + (query_block * tiling.block_size + n * TILE)
    key = lax.broadcasted_iota(jnp.int32, shape, 1) + key_block * tiling.block_size
    return is_weight_kept(random_bits, query.astype(jnp.uint32), key.astype(jnp.uint32), tiling.dropout_rate)


def program_random_bits(tiling: Tiling, seeds: Any, example: Any, group: Any, head: int) -> Any:
    """Returns the random bits of one example and head, numbered over all devices; None without dropout.

    Args:
      seeds: two uint32 of the dropout key, then the numbers of this device's first example and head.
    """
    if tiling.dropout_rate == 0.0:
        return None
    head_index = (example + seeds[2]) * tiling.all_heads + seeds[3] + group * tiling.group + head
    of_key = seeds[0].astype(jnp.uint32), seeds[1].astype(jnp.uint32)
    return head_random_bits(of_key, head_index.astype(jnp.uint32))
