"""Computes what the forward and the backward kernel for texts of one block share: their call, and a strip's scores.

A program handles a group of heads and several rows of the batch, whole. Its code is a straight line over heads and
strips of 128 tokens: products of one strip then overlap with shifts, exponentials and sums of another. Numbers of a
query, such as its maximum, are kept in all 128 lanes, since a tile with such a row needs no broadcast.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from deberta_jax.ops.attention.dropout import is_weight_kept
from deberta_jax.ops.attention.pallas.layout import contract
from deberta_jax.ops.attention.pallas.tiling import TILE, Tiling
from deberta_jax.ops.attention.tpu import strips, words
from deberta_jax.ops.attention.tpu.words import Words
from deberta_jax.ops.products import F32

# The position terms, p2c and c2p: the side whose tokens meet a table, and the table.
TERMS = (("key", "table_query"), ("query", "table_key"))
ROWS = 4  # of the batch in a program, if they have one strip each
VMEM_BYTES = 64 << 20  # most on-chip memory that a program may use
LOG2_E = math.log2(math.e)


def rows_of_program(tiling: Tiling, batch: int) -> int:
    """Returns the rows of the batch that a program handles: a divisor of ``batch``."""
    most = max(1, ROWS // tiling.strips)
    return next(count for count in range(min(most, batch), 0, -1) if batch % count == 0)


def call(
    name: str,
    kernel: Callable,
    tiling: Tiling,
    arrays: dict[str, jax.Array],
    outputs: dict[str, tuple[pl.BlockSpec, jax.ShapeDtypeStruct]],
    scratch: dict[str, Any],
    seeds: jax.Array,
    *,
    sums_over_batch: bool,
    interpret: Any,
) -> tuple[jax.Array, ...]:
    """Runs ``kernel(tiling, rows, refs, seeds, norms)`` in a program for each group of heads and rows of the batch.

    Args:
      arrays: inputs, by the names of ``blocks``; ``refs`` has them, the outputs and the scratch by name.
      outputs: their blocks and shapes.
      seeds: of dropout; ``norms`` are those of ``table_norms``.
      sums_over_batch: whether programs add to one another's outputs, so that their order counts.
    """
    batch = arrays["query"].shape[0]
    rows = rows_of_program(tiling, batch)
    inputs = {name: block for name, block in blocks(tiling, batch).items() if name in arrays}

    def body(seeds, norms, *refs):
        kernel(tiling, rows, dict(zip((*inputs, *outputs, *scratch), refs, strict=True)), seeds, norms)

    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(tiling.groups, batch // rows),
            in_specs=tuple(inputs.values()),
            out_specs=tuple(block for block, _ in outputs.values()),
            scratch_shapes=tuple(scratch.values()),
        ),
        out_shape=tuple(shape for _, shape in outputs.values()),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary" if sums_over_batch else "parallel"),
            vmem_limit_bytes=VMEM_BYTES,
        ),
        interpret=interpret,
        name=name,
    )(seeds, table_norms(tiling, arrays), *(arrays[name] for name in inputs))


def blocks(tiling: Tiling, batch: int) -> dict[str, pl.BlockSpec]:
    """Returns which part of each array a program receives or writes, by the array's name."""
    rows, size, lanes = rows_of_program(tiling, batch), tiling.block_size, tiling.lanes
    tokens = pl.BlockSpec((rows, size, lanes), lambda g, b, *_: (b, 0, g))
    table = pl.BlockSpec((2 * size, lanes), lambda g, b, *_: (0, g))
    transposed = pl.BlockSpec((lanes, 2 * size), lambda g, b, *_: (g, 0))
    return {
        **dict.fromkeys(("query", "key", "value", "context", "cotangent"), tokens),
        "table_key": table,
        "table_query": table,
        "table_key_transposed": transposed,
        "table_query_transposed": transposed,
        "segment_ids": pl.BlockSpec((rows, 1, size), lambda g, b, *_: (b, 0, 0)),
        "attention_mask": pl.BlockSpec((rows, size, size), lambda g, b, *_: (b, 0, 0)),
        "logsumexp": pl.BlockSpec((rows, 1, tiling.group, size), lambda g, b, *_: (b, g, 0, 0)),
    }


def table_norms(tiling: Tiling, arrays: dict[str, jax.Array]) -> jax.Array:
    """Returns the largest norm of a row of each term's table, by head: float32 [terms*heads], 0 if it is not given."""
    norms = []
    for _, name in TERMS:
        if name in arrays:
            table = arrays[name].astype(F32)
            by_head = table.reshape(table.shape[0], tiling.padded_heads, tiling.lanes_per_head)
            norms.append(jnp.sqrt(jnp.square(by_head).sum(axis=2).max(axis=0)))
        else:
            norms.append(jnp.zeros((tiling.padded_heads,), F32))
    return jnp.concatenate(norms)


def shared_scratch(tiling: Tiling, arrays: dict[str, Any], held: Words) -> dict[str, Any]:
    """Returns the scratch memory for masks, and for words of position scores and what they need, as far as given."""
    rows, size = rows_of_program(tiling, arrays["query"].shape[0]), tiling.block_size
    scratch = {}
    if "segment_ids" in arrays:
        scratch["key_ids"] = pltpu.VMEM((rows, 1, size), jnp.int32)
    terms = [side for side, table in TERMS if table in arrays]
    for side in terms:
        scratch[f"{side}_words"] = pltpu.VMEM((rows, held.count, size, size), held.dtype)
    if terms and held.shared > 1:
        scratch["units"] = pltpu.VMEM((rows, words.SUBLANES * tiling.group, TILE), F32)
        scratch["queries"] = pltpu.VMEM((rows, tiling.group, size, tiling.lanes), arrays["query"].dtype)
    return scratch


def strip(n: int) -> slice:
    """Returns the slice of strip n."""
    return slice(n * TILE, (n + 1) * TILE)


def tiles_of(x: Any) -> list[Any]:
    """Returns the tiles [128,128] of [128,m]."""
    return [x[:, start : start + TILE] for start in range(0, x.shape[1], TILE)]


def joined(tiles: list[Any], axis: int = 1) -> Any:
    """Returns tiles side by side, or below one another."""
    return tiles[0] if len(tiles) == 1 else jnp.concatenate(tiles, axis=axis)


def head_rows(tiling: Tiling, head: int) -> slice:
    """Returns the rows of a head in a transposed array [W,m]."""
    return slice(head * tiling.lanes_per_head, (head + 1) * tiling.lanes_per_head)


def replicated_column(row: Any) -> Any:
    """Returns the tile [128,128] whose row i holds number i of ``row`` [1,128] in all lanes."""
    return jnp.broadcast_to(row, (TILE, TILE)).T


def put_position_words(tiling: Tiling, rows: int, refs: dict[str, Any], norms: Any, held: Words) -> None:
    """Stores the words [query,key] of both terms' position scores, their units, and the queries in these units."""
    for e in range(rows if "units" in refs else 0):
        refs["units"][e] = _units(tiling, refs, norms, e)
        for n in range(tiling.strips):
            for head in range(tiling.group):
                refs["queries"][e, head, strip(n)] = _in_units(tiling, refs, "query", e, n, head)
    for side, table in TERMS:
        for n in range(tiling.strips if table in refs else 0):
            for word in range(held.count):
                _put_words(tiling, rows, refs, held, (side, table), n, word)


def _put_words(
    tiling: Tiling, rows: int, refs: dict[str, Any], held: Words, names: tuple[str, str], n: int, word: int
) -> None:
    """Stores one word of strip n of queries or keys, ``names[0]``, and all tokens of the other side.

    Texts of one strip all meet the same rows of the table ``names[1]``: one product has them all.
    """
    side, table = names
    window = refs[table][strips.strip_window(tiling, n)]
    products = [
        contract(joined([_of_head(tiling, refs, side, e, n, head) for e in range(rows)], axis=0), window, 1, 1)
        for head in held.of(word)
    ]
    for e in range(rows):
        scores = (tiles_of(product[strip(e)]) for product in products)
        packed = [words.pack_scores(list(tiles)) for tiles in zip(*scores, strict=True)]
        for b, tile in enumerate(tiles_of(strips.rel_shift(joined(packed)))):
            if side == "query":
                refs["query_words"][e, word, strip(n), strip(b)] = tile
            else:
                refs["key_words"][e, word, strip(b), strip(n)] = tile.T


def _units(tiling: Tiling, refs: dict[str, Any], norms: Any, e: int) -> Any:
    """Returns the units of the position scores of row e of the batch: float32 [8*heads,128]."""
    real = refs["segment_ids"][e] != 0 if "segment_ids" in refs else None
    bounds = []
    for k, (side, table) in enumerate(TERMS):
        if table in refs:
            first = k * tiling.padded_heads + pl.program_id(0) * tiling.group
            of_table = [jnp.full((words.SUBLANES, TILE), norms[first + head]) for head in range(tiling.group)]
            bounds.append(words.largest_norms(tiling, refs[side][e], real) * jnp.concatenate(of_table, axis=0))
    return words.power_of_two(functools.reduce(jnp.maximum, bounds) * (1.0 / words.LARGEST))


def _of_head(tiling: Tiling, refs: dict[str, Any], side: str, e: int, n: int, head: int) -> Any:
    """Returns strip n of the queries or keys of row e in the units of a head, zero in the lanes of other heads."""
    if "units" not in refs:
        return strips.mask_other_heads(refs[side][e, strip(n)], tiling, head)
    return refs["queries"][e, head, strip(n)] if side == "query" else _in_units(tiling, refs, side, e, n, head)


def _in_units(tiling: Tiling, refs: dict[str, Any], side: str, e: int, n: int, head: int) -> Any:
    per_unit = words.tile_of(words.inverse(refs["units"][e]), head)
    x = refs[side][e, strip(n)]
    return (x.astype(F32) * strips.mask_other_heads(per_unit, tiling, head)).astype(x.dtype)


def strip_scores(tiling: Tiling, refs: dict[str, Any], e: int, n: int, held: Words) -> list[tuple[list[Any], Any]]:
    """Returns for each head the tiles [128,128] of the scores of strip n of row e, and the factor that scales them.

    All heads' products come first in the program: the compiler then issues them while it works on the first head's.
    """
    scores = []
    for head in range(tiling.group):
        of_head = tiles_of(contract(_of_head(tiling, refs, "query", e, n, head), refs["key"][e], 1, 1))
        for name in (f"{side}_words" for side, table in TERMS if table in refs):
            packed = tiles_of(refs[name][e, head // held.shared, strip(n)])
            of_head = [x + words.unpack_scores(held, head, tile) for x, tile in zip(of_head, packed, strict=True)]
        factor = words.tile_of(refs["units"][e] * tiling.scale, head) if "units" in refs else tiling.scale
        scores.append((of_head, factor))
    return scores


def put_key_ids(rows: int, refs: dict[str, Any]) -> None:
    """Stores the segment ids of keys such that those of padding equal no query's."""
    for e in range(rows if "segment_ids" in refs else 0):
        ids = refs["segment_ids"][e]
        refs["key_ids"][e] = jnp.where(ids == 0, -1, ids)


def strip_mask(tiling: Tiling, refs: dict[str, Any], e: int, n: int) -> list[Any] | None:
    """Returns tiles [128,128], True where a query of strip n may attend to a key; None if nothing is masked."""
    mask = None
    if "segment_ids" in refs:
        of_queries = replicated_column(refs["segment_ids"][e, :, strip(n)])
        mask = [of_queries == refs["key_ids"][e, :, strip(b)] for b in range(tiling.strips)]
    if "attention_mask" in refs:
        allowed = [tile.astype(jnp.int32) != 0 for tile in tiles_of(refs["attention_mask"][e, strip(n)])]
        mask = allowed if mask is None else [a & b for a, b in zip(mask, allowed, strict=True)]
    return mask


def strip_kept(tiling: Tiling, random_bits: Any, n: int) -> list[Any]:
    """Returns tiles [128,128], True where dropout keeps the weight of a query of strip n."""
    query = (lax.broadcasted_iota(jnp.int32, (TILE, TILE), 0) + n * TILE).astype(jnp.uint32)
    key = lax.broadcasted_iota(jnp.int32, (TILE, TILE), 1)
    of_tile = functools.partial(is_weight_kept, random_bits, query, rate=tiling.dropout_rate)
    return [of_tile(key=(key + b * TILE).astype(jnp.uint32)) for b in range(tiling.strips)]


def select_heads(tiling: Tiling, by_head: list[Any]) -> Any:
    """Returns [128,W] with the lanes of each head taken from its own array [128,W]."""
    selected = by_head[0]
    for head, x in enumerate(by_head[1:], 1):
        selected = jnp.where(strips.is_lane_of(tiling, head, x.shape), x, selected)
    return selected
