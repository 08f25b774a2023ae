"""Computes the scores of a pair of blocks in a TPU kernel, their mask, and which weights dropout keeps.

    score[i,j] = scale * (q_i.k_j + q_i.table_key[i-j] + k_j.table_query[i-j])

The code is a straight line over heads and strips of 128 tokens: products of one strip then overlap with shifts,
exponentials and sums of another. Numbers of a query, such as its maximum, are kept in all 128 lanes, since a tile with
such a row needs no broadcast. Far blocks meet one row of each table: 128 copies of it give such tiles by a product.
"""

import functools
import math
from typing import Any

import jax.numpy as jnp
from jax import lax

from deberta_jax.ops.attention.dropout import head_random_bits, is_weight_kept
from deberta_jax.ops.attention.pallas.layout import contract
from deberta_jax.ops.attention.pallas.tiling import TILE, Tiling
from deberta_jax.ops.attention.tpu import strips, words
from deberta_jax.ops.attention.tpu.grid import TERMS, Program
from deberta_jax.ops.attention.tpu.strips import joined, strip, tiles_of
from deberta_jax.ops.products import F32

LOG2_E = math.log2(math.e)


def put_position_words(program: Program) -> None:
    """Stores the words [query,key] of both terms' position scores, their units, and the queries in these units."""
    if not program.uses_words:
        return
    refs, tiling = program.refs, program.tiling
    for e in range(program.rows if "units" in refs else 0):
        refs["units"][e] = _units(program, e)
        for n in range(tiling.strips):
            for head in range(tiling.group):
                refs["queries"][e, head, strip(n)] = _in_units(program, "query", e, n, head)
    for term in program.terms:
        for n in range(tiling.strips):
            for word in range(program.held.count):
                _put_words(program, term, n, word)


def _put_words(program: Program, term: tuple[str, str], n: int, word: int) -> None:
    """Stores one word of strip n of queries or keys and all tokens of the other side.

    Texts of one strip all meet the same rows of the table: one product has them all.
    """
    (side, table), refs, rows = term, program.refs, program.rows
    window, axis = _table_rows(program, table, strips.strip_window(program.tiling, n))
    products = [
        contract(joined([_of_head(program, side, e, n, head) for e in range(rows)], axis=0), window, 1, axis)
        for head in program.held.of(word)
    ]
    for e in range(rows):
        scores = (tiles_of(product[strip(e)]) for product in products)
        packed = [words.pack_scores(list(tiles)) for tiles in zip(*scores, strict=True)]
        for b, tile in enumerate(tiles_of(strips.rel_shift(joined(packed)))):
            if side == "query":
                refs["query_words"][e, word, strip(n), strip(b)] = tile
            else:
                refs["key_words"][e, word, strip(b), strip(n)] = tile.T


def _table_rows(program: Program, table: str, tiles: range) -> tuple[Any, int]:
    """Returns tiles of 128 rows of a table's window, and the axis of its lanes: the first one if it is transposed."""
    if table in program.refs:
        return program.refs[table][tiles.start * TILE : tiles.stop * TILE], 1
    return joined([program.refs[f"{table}_transposed"][t] for t in tiles]), 0


def _units(program: Program, e: int) -> Any:
    """Returns the units of the position scores of row e of the batch: float32 [8*heads,128]."""
    refs, tiling = program.refs, program.tiling
    bounds = []
    for k, (side, table) in enumerate(TERMS):
        if (side, table) in program.terms:
            ids = f"{side}_segment_ids"
            real = refs[ids][e] != 0 if ids in refs else None
            first = k * tiling.padded_heads + program.group * tiling.group
            of_table = [jnp.full((words.SUBLANES, TILE), program.norms[first + head]) for head in range(tiling.group)]
            bounds.append(words.largest_norms(tiling, refs[side][e], real) * jnp.concatenate(of_table, axis=0))
    return words.power_of_two(functools.reduce(jnp.maximum, bounds) * (1.0 / words.LARGEST))


def _of_head(program: Program, side: str, e: int, n: int, head: int) -> Any:
    """Returns strip n of the queries or keys of row e in the units of a head, zero in the lanes of other heads."""
    refs = program.refs
    if "units" not in refs or program.is_far:
        return strips.mask_other_heads(refs[side][e, strip(n)], program.tiling, head)
    return refs["queries"][e, head, strip(n)] if side == "query" else _in_units(program, side, e, n, head)


def _in_units(program: Program, side: str, e: int, n: int, head: int) -> Any:
    per_unit = words.tile_of(words.inverse(program.refs["units"][e]), head)
    x = program.refs[side][e, strip(n)]
    return (x.astype(F32) * strips.mask_other_heads(per_unit, program.tiling, head)).astype(x.dtype)


def strip_scores(program: Program, e: int, n: int) -> list[tuple[list[Any], Any]]:
    """Returns for each head the tiles [128,128] of the scores of strip n of row e, and the factor that scales them.

    All heads' products come first in the program: the compiler then issues them while it works on the first head's.
    """
    refs, tiling, held = program.refs, program.tiling, program.held
    scores = []
    for head in range(tiling.group):
        query = _of_head(program, "query", e, n, head)
        of_head = tiles_of(contract(query, refs["key"][e], 1, 1))
        if program.is_far:
            of_head = _add_far(program, of_head, query, e, head)
        for side, _ in program.terms if program.uses_words else ():
            packed = tiles_of(refs[f"{side}_words"][e, head // held.shared, strip(n)])
            of_head = [x + words.unpack_scores(held, head, tile) for x, tile in zip(of_head, packed, strict=True)]
        in_units = program.uses_words and "units" in refs
        factor = words.tile_of(refs["units"][e] * tiling.scale, head) if in_units else tiling.scale
        scores.append((of_head, factor))
    return scores


def _add_far(program: Program, scores: list[Any], query: Any, e: int, head: int) -> list[Any]:
    """Returns the tiles with the position scores of far blocks added: one number of each query, one of each key."""
    refs = program.refs
    for side, table in program.terms:
        copies, axis = _table_rows(program, table, range(1))
        if side == "query":
            of_queries = contract(query, copies, 1, axis)
            scores = [x + of_queries for x in scores]
        else:
            keys = strips.mask_other_heads(refs["key"][e], program.tiling, head)
            of_keys = tiles_of(contract(copies, keys, axis, 1))
            scores = [x + of_key for x, of_key in zip(scores, of_keys, strict=True)]
    return scores


def put_key_ids(program: Program) -> None:
    """Stores the segment ids of keys such that those of padding equal no query's."""
    for e in range(program.rows if "key_ids" in program.refs else 0):
        ids = program.refs["key_segment_ids"][e]
        program.refs["key_ids"][e] = jnp.where(ids == 0, -1, ids)


def strip_mask(program: Program, e: int, n: int) -> list[Any] | None:
    """Returns tiles [128,128], True where a query of strip n may attend to a key; None if nothing is masked."""
    refs, mask = program.refs, None
    if "key_ids" in refs:
        of_queries = strips.replicated_column(refs["query_segment_ids"][e, :, strip(n)])
        mask = [of_queries == refs["key_ids"][e, :, strip(b)] for b in range(program.tiling.strips)]
    if "attention_mask" in refs:
        allowed = [tile.astype(jnp.int32) != 0 for tile in tiles_of(refs["attention_mask"][e, strip(n)])]
        mask = allowed if mask is None else [a & b for a, b in zip(mask, allowed, strict=True)]
    return mask


def program_random_bits(program: Program, e: int, head: int) -> Any:
    """Returns the random bits of one row of the batch and head, numbered over all devices; None without dropout.

    The seeds are two uint32 of the dropout key, then the numbers of this device's first row and head.
    """
    tiling, seeds = program.tiling, program.seeds
    if tiling.dropout_rate == 0.0:
        return None
    first_head = seeds[3] + program.group * tiling.group
    head_index = (program.first_row + e + seeds[2]) * tiling.all_heads + first_head + head
    of_key = seeds[0].astype(jnp.uint32), seeds[1].astype(jnp.uint32)
    return head_random_bits(of_key, head_index.astype(jnp.uint32))


def strip_kept(program: Program, random_bits: Any, n: int) -> list[Any]:
    """Returns tiles [128,128], True where dropout keeps the weight of a query of strip n."""
    tiling = program.tiling
    first = program.query_block * tiling.block_size + n * TILE
    query = (lax.broadcasted_iota(jnp.int32, (TILE, TILE), 0) + first).astype(jnp.uint32)
    key = lax.broadcasted_iota(jnp.int32, (TILE, TILE), 1) + program.key_block * tiling.block_size
    of_tile = functools.partial(is_weight_kept, random_bits, query, rate=tiling.dropout_rate)
    return [of_tile(key=(key + b * TILE).astype(jnp.uint32)) for b in range(tiling.strips)]


def select_heads(tiling: Tiling, by_head: list[Any]) -> Any:
    """Returns [128,W] with the lanes of each head taken from its own array [128,W]."""
    selected = by_head[0]
    for head, x in enumerate(by_head[1:], 1):
        selected = jnp.where(strips.is_lane_of(tiling, head, x.shape), x, selected)
    return selected
