"""Operations of the TPU kernels on strips of 128 rows, and the scores of a pair of blocks.

    score[i,j] = scale * (q_i.k_j + q_i.EK[j-i] + k_j.EQ[j-i])

EK is ordered by descending distance i - j, EQ by ascending, so that both are sliced and shifted alike.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from deberta_jax.ops.attention.masks import MASKED
from deberta_jax.ops.attention.pallas.layout import product
from deberta_jax.ops.attention.pallas.tiling import TILE, Plan
from deberta_jax.ops.dropout import kept, stream


def _lanes_and_rows() -> tuple[jax.Array, jax.Array]:
    lane = lax.broadcasted_iota(jnp.int32, (TILE, TILE), 1)
    return lane, lax.broadcasted_iota(jnp.int32, (TILE, TILE), 0)


def shift(x: Any) -> Any:
    """x [128, m+128] -> out [128, m], out[i,b] = x[i, 127-i+b].

    Of two neighbouring tiles, lanes from 127-i on of the left and lanes before it of the right are read: select, then
    rotate the one tile.
    """
    lane, row = _lanes_and_rows()
    left = lane >= TILE - 1 - row
    tiles = [x[:, at : at + TILE] for at in range(0, x.shape[1], TILE)]
    chosen = [jnp.where(left, a, b) for a, b in itertools.pairwise(tiles)]
    turned = [turn_right(tile) for tile in chosen]
    return turned[0] if len(turned) == 1 else jnp.concatenate(turned, axis=1)


def turn_right(tile: Any) -> Any:
    """Rotates row i of [128,128] by i+1 lanes to the right.

    Mosaic refuses rotations in which the 8 rows of a register straddle a multiple of 128; beginning at 1, none does.
    In the interpreter the same is a gather: its rotation is 128 operations, which take seconds to compile.
    """
    lane, row = _lanes_and_rows()
    return lax.platform_dependent(
        tile,
        tpu=rotate,
        default=lambda tile: jnp.take_along_axis(tile, (lane - row - 1) & (TILE - 1), axis=1),
    )


def rotate(tile: Any) -> Any:
    """The TPU's own strided rotation, which ``turn_right`` is on a TPU."""
    return pltpu.roll(tile, 1, 1, stride=1, stride_axis=0)


def unshift(y: Any) -> Any:
    """The transpose of ``shift``: y [128, m] -> out [128, m+128], out[i, 127-i+b] = y[i,b], zero elsewhere.

    Row i is rotated left by i+1. Mosaic has no negative stride, so by the gather of lanes within a register.
    """
    lane, row = _lanes_and_rows()
    left, source = lane >= TILE - 1 - row, (lane + row + 1) & (TILE - 1)
    tiles = [y[:, at : at + TILE] for at in range(0, y.shape[1], TILE)]
    turned = [jnp.take_along_axis(tile, source, axis=1) for tile in tiles]
    none = jnp.zeros((TILE, TILE), y.dtype)
    before, after = [none, *turned], [*turned, none]
    return jnp.concatenate([jnp.where(left, b, a) for a, b in zip(before, after, strict=True)], axis=1)


def column(row: Any) -> Any:
    """[1,128] -> [128,1]."""
    return jnp.broadcast_to(row, (TILE, TILE)).T[:, :1]


def row(column: Any) -> Any:
    """[128,1] -> [1,128]."""
    return jnp.broadcast_to(column, (TILE, TILE)).T[:1]


def own_lanes(x: Any, plan: Plan, head: int) -> Any:
    """``x`` [S,W] with the lanes of the program's other heads set to zero."""
    if plan.group == 1:
        return x
    lane = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    own = (lane >= head * plan.lanes_per_head) & (lane < (head + 1) * plan.lanes_per_head)
    return jnp.where(own, x, jnp.zeros_like(x))


def each_strip(plan: Plan, visit: Any) -> None:
    """Calls ``visit(n, slice)`` for each strip of 128 rows of a block."""
    if plan.strips == 1:
        visit(0, pl.ds(0, TILE))
        return

    @pl.loop(0, plan.strips)
    def _(n):
        visit(n, pl.ds(pl.multiple_of(n * TILE, TILE), TILE))


def strip_window(plan: Plan, n: Any) -> Any:
    """The rows of a table window that strip n meets: S+128 of 2S."""
    start = plan.block - (n + 1) * TILE
    return pl.ds(start if isinstance(n, int) else pl.multiple_of(start, TILE), plan.block + TILE)


def is_far(plan: Plan, apart: Any) -> Any:
    return (apart <= plan.far[0]) | (apart >= plan.far[1])


def has_far(plan: Plan) -> bool:
    return plan.far[0] > -plan.blocks or plan.far[1] < plan.blocks


def branches(plan: Plan, apart: Any, near: Any, far: Any) -> None:
    """Calls ``far()`` in programs whose blocks are far apart, else ``near()``."""
    if not has_far(plan):
        near()
        return
    pl.when(is_far(plan, apart))(far)
    pl.when(jnp.logical_not(is_far(plan, apart)))(near)


def put_position_scores(plan: Plan, refs: dict[str, Any], head: int, apart: Any) -> None:
    """Content-to-position plus position-to-content scores of a pair of blocks into ``refs["position"]``, [S,S]."""
    if "position" not in refs:
        return
    out, query, key = refs["position"], refs["query"], refs["key"]
    c2p, p2c = refs.get("table_key"), refs.get("table_query")

    def to_content(n, at):
        assert p2c is not None
        by_distance = product(own_lanes(key[0, at], plan, head), p2c[strip_window(plan, n)], 1, 1)
        out[:, at] = shift(by_distance).T

    def to_position(n, at):
        assert c2p is not None
        by_distance = product(own_lanes(query[0, at], plan, head), c2p[strip_window(plan, n)], 1, 1)
        out[at] = shift(by_distance) + (0.0 if p2c is None else out[at])

    def near():
        if p2c is not None:
            each_strip(plan, to_content)
        if c2p is not None:
            each_strip(plan, to_position)

    def far():
        # All rows of the window are one row: a tile of it gives the same number in all lanes, or in all rows.
        per_key = 0.0 if p2c is None else product(p2c[pl.ds(0, TILE)], own_lanes(key[0], plan, head), 1, 1)

        def one_row(n, at):
            scores = jnp.broadcast_to(per_key, (TILE, plan.block))
            if c2p is not None:
                scores += product(own_lanes(query[0, at], plan, head), c2p[pl.ds(0, TILE)], 1, 1)[:, :1]
            out[at] = scores

        each_strip(plan, one_row)

    branches(plan, apart, near, far)


def visible(refs: dict[str, Any], at: Any) -> Any:
    """[128,S] True where the strip's queries may read the block's keys; None if nothing is hidden."""
    seen = None
    if "texts_query" in refs:
        own, other = column(refs["texts_query"][0, :, at]), refs["texts_key"][0]
        seen = (own == other) & (other != 0)
    if "pairs" in refs:
        allowed = refs["pairs"][0, at].astype(jnp.int32) != 0
        seen = allowed if seen is None else seen & allowed
    return seen


def strip_scores(plan: Plan, refs: dict[str, Any], query: Any, at: Any) -> tuple[Any, Any]:
    """Scaled scores of a strip's queries [128,W] and the block's keys, masked, [128,S], and what is visible."""
    scores = product(query, refs["key"][0], 1, 1)
    if "position" in refs:
        scores += refs["position"][at]
    scores *= plan.scale
    seen = visible(refs, at)
    return (scores if seen is None else jnp.where(seen, scores, MASKED)), seen


def strip_kept(plan: Plan, words: Any, n: Any, query_block: Any, key_block: Any) -> Any:
    """[128,S] True where dropout keeps the weight."""
    shape = (TILE, plan.block)
    query = lax.broadcasted_iota(jnp.int32, shape, 0) + (query_block * plan.block + n * TILE)
    key = lax.broadcasted_iota(jnp.int32, shape, 1) + key_block * plan.block
    return kept(words, query.astype(jnp.uint32), key.astype(jnp.uint32), plan.rate)


def dropout_words(plan: Plan, seeds: Any, example: Any, group: Any, head: int) -> Any:
    """The two hash words of one example and head, numbered over all devices. ``seeds``: two words, first of each."""
    if plan.rate == 0.0:
        return None
    at = (example + seeds[2]) * plan.all_heads + seeds[3] + group * plan.group + head
    words = seeds[0].astype(jnp.uint32), seeds[1].astype(jnp.uint32)
    return stream(words, at.astype(jnp.uint32))
