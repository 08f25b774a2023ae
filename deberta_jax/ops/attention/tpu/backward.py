"""Implements the TPU's backward kernel: all five gradients in one pass over the pairs of blocks.

With dS = P (dP - delta) scale, U = rel_unshift(dS) and W = rel_unshift(dS^T):

    d_query = dS k + U table_key        d_table_key = U^T q
    d_key = dS^T q + W table_query      d_table_query = W^T k

Key blocks run in the outer loop. d_key and d_value of a key block are summed over its query blocks, d_query over the
whole row, and the gradients of the tables over all rows of the batch: serial sums in a fixed order, without a scatter.
All are computed transposed, [W,tokens]: a product then has the rows of one head, where [tokens,W] would have the lanes
of all of them. Far blocks meet one row of each table; its gradient is spread over the rows of the window's first tile,
which all are copies of it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from deberta_jax.ops.attention.pallas.layout import contract
from deberta_jax.ops.attention.pallas.tiling import TILE, Tiling
from deberta_jax.ops.attention.tpu import grid, scores, strips, words
from deberta_jax.ops.attention.tpu.grid import KEY_MAJOR, TERMS, Program
from deberta_jax.ops.attention.tpu.scores import LOG2_E
from deberta_jax.ops.attention.tpu.strips import joined, strip, tiles_of
from deberta_jax.ops.attention.tpu.words import Words, make_gradient_words, make_words, parts_of
from deberta_jax.ops.products import F32

_TOKENS = ("query", "key", "value")


def backward_kernel(
    tiling: Tiling, arrays: dict[str, jax.Array], scalars: tuple[jax.Array, ...], interpret: Any
) -> dict[str, jax.Array]:
    """Returns the gradients by name: query, key, value [B,L,N*H] in their dtype, given tables float32 [U,N*H]."""
    query, size = arrays["query"], tiling.block_size
    held = make_words(tiling, query.dtype)
    rows = grid.rows_of_program(tiling, query.shape[0])
    tables = [name for _, name in TERMS if name in arrays]
    sums = pltpu.VMEM((rows, tiling.lanes, size), F32)
    scratch = {
        **grid.shared_scratch(tiling, arrays, held),
        "key_transposed": pltpu.VMEM((rows, tiling.lanes, size), query.dtype),
        "sum_d_query": pltpu.VMEM((rows, tiling.blocks * tiling.strips, tiling.lanes, TILE), F32),
        "sum_d_key": sums,
        "sum_d_value": sums,
    }
    if tables:  # both terms' gradients are shifted, one of them transposed
        shifted = make_gradient_words(tiling, query.dtype)
        scratch["d_words"] = pltpu.VMEM((rows, shifted.count, size, size), shifted.dtype)
    sum_of_table = pltpu.VMEM((tiling.table_rows // TILE, tiling.lanes, TILE), F32)
    scratch |= {f"sum_d_{name}": sum_of_table for name in tables}
    transposed = {f"{name}_transposed": _by_tile(arrays[name].T) for name in tables}
    arrays = {name: x for name, x in arrays.items() if name not in tables} | transposed
    results = grid.call(
        "disentangled_attention_backward",
        _kernel,
        tiling,
        held,
        arrays,
        output_blocks(tiling, arrays),
        scratch,
        scalars,
        KEY_MAJOR,
        interpret,
    )
    return {name.removeprefix("d_"): x for name, x in results.items()}


def _by_tile(x: jax.Array) -> jax.Array:
    """Returns [W,U] as [U/128,W,128]."""
    return x.reshape(x.shape[0], -1, TILE).swapaxes(0, 1)


def output_blocks(tiling: Tiling, arrays: dict[str, Any]) -> dict[str, tuple[pl.BlockSpec, jax.ShapeDtypeStruct]]:
    """Returns the block and the shape of each output, by the name of the array with the prefix ``d_``."""
    query = arrays["query"]
    rows = grid.rows_of_program(tiling, query.shape[0])
    row = pl.BlockSpec((rows, tiling.padded_length, tiling.lanes), lambda g, b, *_: (b, 0, g))
    by_key = pl.BlockSpec((rows, tiling.block_size, tiling.lanes), lambda g, b, j, i, *_: (b, j, g))
    blocks = {"query": row, "key": by_key, "value": by_key}
    outputs = {f"d_{name}": (blocks[name], jax.ShapeDtypeStruct(query.shape, query.dtype)) for name in _TOKENS}
    table = pl.BlockSpec((tiling.table_rows, tiling.lanes), lambda g, *_: (0, g))
    like = jax.ShapeDtypeStruct((tiling.table_rows, query.shape[2]), F32)
    return outputs | {f"d_{name}": (table, like) for _, name in TERMS if f"{name}_transposed" in arrays}


def _kernel(program: Program) -> None:
    refs, tiling = program.refs, program.tiling
    is_first, is_last = program.first_row == 0, program.first_row == program.last_row
    if tiling.blocks > 1:
        is_first &= (program.key_block == 0) & (program.query_block == 0)
        is_last &= (program.key_block == tiling.blocks - 1) & (program.query_block == tiling.blocks - 1)

    @pl.when(is_first)
    def _():
        for _, table in program.terms:
            refs[f"sum_d_{table}"][...] = jnp.zeros_like(refs[f"sum_d_{table}"])

    if tiling.blocks == 1:
        _add_gradients(program)
        _store(program, _TOKENS)
    else:
        _add_block(program)

    @pl.when(is_last)
    def _():
        for _, table in program.terms:
            for t in range(tiling.table_rows // TILE):
                refs[f"d_{table}"][strip(t)] = refs[f"sum_d_{table}"][t].T


def _add_block(program: Program) -> None:
    """Adds the gradients of one of several pairs of blocks; the first pair begins a sum, the last one stores it."""
    refs, tiling = program.refs, program.tiling

    @pl.when(program.key_block == 0)
    def _():
        strips_of_block = pl.ds(_first_strip(program), tiling.strips)
        refs["sum_d_query"][0, strips_of_block] = jnp.zeros((tiling.strips, tiling.lanes, TILE), F32)

    @pl.when(program.query_block == 0)
    def _():
        refs["sum_d_key"][...] = jnp.zeros_like(refs["sum_d_key"])
        refs["sum_d_value"][...] = jnp.zeros_like(refs["sum_d_value"])

    program.when_it_has_work(KEY_MAJOR, _add_gradients)
    pl.when(program.query_block == tiling.blocks - 1)(lambda: _store(program, ("key", "value")))
    pl.when(program.key_block == tiling.blocks - 1)(lambda: _store(program, ("query",)))


def _first_strip(program: Program) -> Any:
    """Returns the number of the first strip of the query block in the whole row."""
    return program.query_block * program.tiling.strips


def _store(program: Program, names: tuple[str, ...]) -> None:
    """Stores gradients of tokens whose sums are complete: of the query block's, or of the key block's."""
    refs, tiling = program.refs, program.tiling
    for e in range(program.rows):
        for n in range(tiling.strips):
            for name in names:
                first = 0
                if name == "query":
                    first = program.query_block * tiling.block_size
                    total = refs["sum_d_query"][e, _first_strip(program) + n]
                else:
                    total = refs[f"sum_d_{name}"][e, :, strip(n)]
                at = pl.ds(_aligned(first + n * TILE), TILE)
                refs[f"d_{name}"][e, at] = total.T.astype(refs[f"d_{name}"].dtype)


def _aligned(start: Any) -> Any:
    return start if isinstance(start, int) else pl.multiple_of(start, TILE)


def _add_gradients(program: Program) -> None:
    """Adds what a pair of blocks contributes to all gradients."""
    refs, tiling = program.refs, program.tiling
    scores.put_key_ids(program)
    scores.put_position_words(program)
    each = [(e, n) for e in range(program.rows) for n in range(tiling.strips)]
    for e, n in each:
        refs["key_transposed"][e, :, strip(n)] = refs["key"][e, strip(n)].T
    far_sums: dict[int, list[Any]] = {}  # by head: over the strips, tiles of dS of all keys
    for e, n in each:
        d_scores = _content_gradients(program, e, n)
        if program.is_far:
            _c2p_gradients_of_far(program, n, d_scores)
            for head, tiles in enumerate(d_scores):
                so_far = far_sums.get(head)
                far_sums[head] = tiles if so_far is None else [a + b for a, b in zip(so_far, tiles, strict=True)]
    if "table_query_transposed" in refs and program.is_far:
        _p2c_gradients_of_far(program, far_sums)
    elif "table_query_transposed" in refs:
        for e, n in each:
            _p2c_gradients(program, e, n)


def _content_gradients(program: Program, e: int, n: int) -> list[list[Any]]:
    """Adds the gradients of strip n of the queries through the content term and, of near blocks, ``table_key``.

    Stores dS of near blocks in words. Returns dS for each head, tiles [128,128].
    """
    refs, tiling, held = program.refs, program.tiling, _gradient_words(program)
    query, cotangent = refs["query"][e, strip(n)], refs["cotangent"][e, strip(n)]
    query_transposed = query.T
    d_scores = _d_scores(program, e, n, cotangent)
    if not program.uses_words:
        for head in range(tiling.group):
            d_scores_of_head = joined([x.astype(query.dtype) for x in d_scores[head]])
            _add_content(program, e, n, head, d_scores_of_head, query_transposed)
        return d_scores
    for word in range(held.count):
        packed = [
            words.pack_gradients(list(tiles)) for tiles in zip(*(d_scores[head] for head in held.of(word)), strict=True)
        ]
        for b, tile in enumerate(packed):
            refs["d_words"][e, word, strip(n), strip(b)] = tile
        by_key = [words.unpack_gradients(tile) for tile in packed]
        for k, head in enumerate(held.of(word)):
            _add_content(program, e, n, head, joined([x[k].astype(query.dtype) for x in by_key]), query_transposed)
        if "table_key_transposed" in refs:
            _add_position(program, e, n, word, packed, ("query", "key"), query_transposed)
    return d_scores


def _d_scores(program: Program, e: int, n: int, cotangent: Any) -> list[list[Any]]:
    """Returns dS of strip n of the queries for each head, tiles [128,128]; adds the gradients of the values."""
    refs, tiling = program.refs, program.tiling
    cotangent_transposed = cotangent.T
    mask = scores.strip_mask(program, e, n)
    all_scores = scores.strip_scores(program, e, n)
    d_dropped = [
        tiles_of(contract(strips.mask_other_heads(cotangent, tiling, head), refs["value"][e], 1, 1))
        for head in range(tiling.group)
    ]
    d_scores = []
    for head, (of_head, scale) in enumerate(all_scores):
        logsumexp = _of_queries(program, "logsumexp", e, n, head) * LOG2_E
        weights = [jnp.exp2(x * (scale * LOG2_E) - logsumexp) for x in of_head]
        if mask is not None:
            weights = [jnp.where(seen, x, 0.0) for seen, x in zip(mask, weights, strict=True)]
        dropped, d_weights = weights, d_dropped[head]
        random_bits = scores.program_random_bits(program, e, head)
        if random_bits is not None:
            kept, factor = scores.strip_kept(program, random_bits, n), 1.0 / (1.0 - tiling.dropout_rate)
            dropped = [jnp.where(keep, x * factor, 0.0) for keep, x in zip(kept, weights, strict=True)]
            d_weights = [jnp.where(keep, x * factor, 0.0) for keep, x in zip(kept, d_weights, strict=True)]
        if "delta" in refs:
            delta = _of_queries(program, "delta", e, n, head)
        else:
            delta = functools.reduce(jnp.add, [p * d for p, d in zip(weights, d_weights, strict=True)])
            delta = delta.sum(axis=1, keepdims=True)
        d_scores.append([p * (d - delta) * tiling.scale for p, d in zip(weights, d_weights, strict=True)])
        rows = _head_rows(tiling, head)
        dropped = joined([x.astype(cotangent.dtype) for x in dropped])
        _add(program, "value", (e, rows), contract(cotangent_transposed[rows], dropped, 1, 0), n)
    return d_scores


def _of_queries(program: Program, name: str, e: int, n: int, head: int) -> Any:
    """Returns numbers of the queries of strip n, [128,128], each in all lanes of its row."""
    return strips.replicated_column(program.refs[name][e, 0, head : head + 1, strip(n)])


def _head_rows(tiling: Tiling, head: int) -> slice:
    """Returns the rows of a head in a transposed array [W,m]."""
    return slice(head * tiling.lanes_per_head, (head + 1) * tiling.lanes_per_head)


def _add(program: Program, name: str, at: tuple[Any, ...], x: Any, n: int) -> None:
    """Adds to the sums of the keys' or values' gradients, or stores the first number of one key block's."""
    total = program.refs[f"sum_d_{name}"]
    total[at] = x if n == 0 and program.tiling.blocks == 1 else total[at] + x


def _add_content(program: Program, e: int, n: int, head: int, d_scores: Any, query_transposed: Any) -> None:
    """Adds the gradients of queries and keys through the content term, given dS of a strip [128,S]."""
    refs, rows, at = program.refs, _head_rows(program.tiling, head), _first_strip(program) + n
    _add(program, "key", (e, rows), contract(query_transposed[rows], d_scores, 1, 0), n)
    added = contract(refs["key_transposed"][e, rows], d_scores, 1, 1)
    total = refs["sum_d_query"]
    total[e, at, rows] = added if program.tiling.blocks == 1 else total[e, at, rows] + added


def _p2c_gradients(program: Program, e: int, n: int) -> None:
    """Adds the gradients of strip n of the keys through ``table_query``, of near blocks."""
    refs = program.refs
    for word in range(_gradient_words(program).count):
        packed = [refs["d_words"][e, word, strip(b), strip(n)].T for b in range(program.tiling.strips)]
        _add_position(program, e, n, word, packed, ("key", "query"), refs["key_transposed"][e, :, strip(n)])


def _add_position(
    program: Program, e: int, n: int, word: int, packed: list[Any], names: tuple[str, str], transposed: Any
) -> None:
    """Adds the gradients of a table and of the side that it meets, given dS of a strip of that side as words.

    Args:
      packed: tiles of words, with rows of that side.
      names: of the side, and of its table.
      transposed: the side's strip [W,128].
    """
    (side, table), tiling, refs = names, program.tiling, program.refs
    by_distance = [words.unpack_gradients(tile) for tile in tiles_of(strips.rel_unshift(joined(packed)))]
    window = strips.strip_window(tiling, n)
    first = _first_tile(program, table)
    for k, head in enumerate(_gradient_words(program).of(word)):
        rows, d_scores = _head_rows(tiling, head), joined([x[k] for x in by_distance])
        table_transposed = joined([refs[f"table_{table}_transposed"][t, rows] for t in window])
        _add_to_side(program, side, e, n, rows, contract(table_transposed, d_scores.astype(transposed.dtype), 1, 1))
        d_table = tiles_of(_table_product(program, transposed[rows], d_scores, 0))
        for t, added in zip(window, d_table, strict=True):
            refs[f"sum_d_table_{table}"][first + t, rows] += added


def _table_product(program: Program, transposed: Any, d_scores: Any, axis: int) -> Any:
    """Returns what dS adds to the gradient of a table: the product of tokens [H,128] and dS, float32, over ``axis``.

    Over several blocks such a gradient sums so many pairs of tokens that the rounding of each dS to bfloat16 would
    show: what rounding takes away is multiplied too.
    """
    count = 2 if program.tiling.blocks > 1 else 1
    products = [contract(transposed, part, 1, axis) for part in parts_of(d_scores, transposed.dtype, count)]
    return functools.reduce(jnp.add, products)


def _gradient_words(program: Program) -> Words:
    return make_gradient_words(program.tiling, program.refs["query"].dtype)


def _add_to_side(program: Program, side: str, e: int, n: int, rows: slice, added: Any) -> None:
    if side == "query":
        program.refs["sum_d_query"][e, _first_strip(program) + n, rows] += added
    else:
        program.refs["sum_d_key"][e, rows, strip(n)] += added


def _first_tile(program: Program, table: str) -> Any:
    """Returns the number of the first tile of the window that the blocks meet, in the gradient of a table."""
    low, high = program.tiling.near
    if program.tiling.blocks == 1:
        return 0
    offset = jnp.clip(program.key_block - program.query_block, low, high)
    return (offset - low if table == "key" else high - offset) * program.tiling.strips


def _c2p_gradients_of_far(program: Program, n: int, d_scores: list[list[Any]]) -> None:
    """Adds the gradients of strip n of the queries through ``table_key``, of far blocks, given dS of each head."""
    refs, tiling = program.refs, program.tiling
    if "table_key_transposed" not in refs:
        return
    transposed, first = refs["query"][0, strip(n)].T, _first_tile(program, "key")
    for head, tiles in enumerate(d_scores):
        rows, d_sum = _head_rows(tiling, head), functools.reduce(jnp.add, tiles)
        added = contract(refs["table_key_transposed"][0, rows], d_sum.astype(transposed.dtype), 1, 1)
        _add_to_side(program, "query", 0, n, rows, added)
        refs["sum_d_table_key"][first, rows] += _table_product(program, transposed[rows], d_sum, 0)


def _p2c_gradients_of_far(program: Program, far_sums: dict[int, list[Any]]) -> None:
    """Adds the gradients of the keys through ``table_query``, of far blocks, given dS summed over the strips."""
    refs, tiling, first = program.refs, program.tiling, _first_tile(program, "query")
    for head, tiles in far_sums.items():
        rows, d_sum = _head_rows(tiling, head), joined(tiles)
        rounded = d_sum.astype(refs["key"].dtype)
        refs["sum_d_key"][0, rows] += contract(refs["table_query_transposed"][0, rows], rounded, 1, 0)
        refs["sum_d_table_query"][first, rows] += _table_product(program, refs["key_transposed"][0, rows], d_sum, 1)
