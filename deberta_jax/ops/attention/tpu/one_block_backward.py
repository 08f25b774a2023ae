"""Implements the TPU's backward kernel for texts of one block.

The formulas are those of ``backward``. Gradients of queries, keys, values and tables are computed transposed,
[W,tokens]: a product then has the rows of one head, where [tokens,W] would have the lanes of all of them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from deberta_jax.ops.attention.pallas.layout import contract
from deberta_jax.ops.attention.pallas.tiling import Tiling
from deberta_jax.ops.attention.tpu import one_block, strips, words
from deberta_jax.ops.attention.tpu.one_block import LOG2_E, TERMS, head_rows, joined, strip, tiles_of
from deberta_jax.ops.attention.tpu.words import Words, make_words
from deberta_jax.ops.products import F32


def backward_kernel(
    tiling: Tiling, arrays: dict[str, jax.Array], seeds: jax.Array, interpret: Any
) -> dict[str, jax.Array]:
    """Returns the gradients by name: query, key, value [B,L,N*H] in their dtype, given tables float32 [U,N*H]."""
    query = arrays["query"]
    batch, size = query.shape[0], tiling.block_size
    rows = one_block.rows_of_program(tiling, batch)
    tables = [name for _, name in TERMS if name in arrays]
    block = one_block.blocks(tiling, batch)
    outputs = {
        f"d_{name}": (block[name], jax.ShapeDtypeStruct(query.shape, query.dtype)) for name in ("query", "key", "value")
    }
    for name in tables:
        shape = jax.ShapeDtypeStruct((query.shape[2], 2 * size), F32)
        outputs[f"d_{name}"] = block[f"{name}_transposed"], shape
    held = make_words(tiling, query.dtype)
    sums = pltpu.VMEM((rows, tiling.lanes, size), F32)
    scratch = {
        **one_block.shared_scratch(tiling, arrays, held),
        "key_transposed": pltpu.VMEM((rows, tiling.lanes, size), query.dtype),
        **{f"sum_d_{name}": sums for name in ("query", "key", "value")},
    }
    if tables:  # both terms' gradients are shifted, one of them transposed
        scratch["d_words"] = pltpu.VMEM((rows, held.count, size, size), held.dtype)
    results = one_block.call(
        "disentangled_attention_backward",
        functools.partial(_kernel, held=held),
        tiling,
        arrays | {f"{name}_transposed": arrays[name].T for name in tables},
        outputs,
        scratch,
        seeds,
        sums_over_batch=True,
        interpret=interpret,
    )
    gradients = dict(zip((name.removeprefix("d_") for name in outputs), results, strict=True))
    return {name: x.T if name in tables else x for name, x in gradients.items()}


def _kernel(tiling: Tiling, rows: int, refs: dict[str, Any], seeds: Any, norms: Any, *, held: Words) -> None:
    group, step = pl.program_id(0), pl.program_id(1)

    @pl.when(step == 0)
    def _():
        for name in (f"d_{table}" for _, table in TERMS if table in refs):
            refs[name][...] = jnp.zeros_like(refs[name])

    one_block.put_key_ids(rows, refs)
    one_block.put_position_words(tiling, rows, refs, norms, held)
    each = [(e, n) for e in range(rows) for n in range(tiling.strips)]
    for e, n in each:
        refs["key_transposed"][e, :, strip(n)] = refs["key"][e, strip(n)].T
    for e, n in each:
        random_bits = [
            strips.program_random_bits(tiling, seeds, step * rows + e, group, head) for head in range(tiling.group)
        ]
        _gradients_by_query(tiling, refs, e, n, random_bits, held)
    if "table_query" in refs:
        for e, n in each:
            _p2c_gradients(tiling, refs, e, n, held)
    for e, n in each:
        for name in ("query", "key", "value"):
            total = refs[f"sum_d_{name}"][e, :, strip(n)].T
            refs[f"d_{name}"][e, strip(n)] = total.astype(refs[f"d_{name}"].dtype)


def _gradients_by_query(
    tiling: Tiling, refs: dict[str, Any], e: int, n: int, random_bits: list[Any], held: Words
) -> None:
    """Adds the gradients of strip n of the queries through the content term and ``table_key``; stores dS."""
    query, cotangent = refs["query"][e, strip(n)], refs["cotangent"][e, strip(n)]
    query_transposed, cotangent_transposed = query.T, cotangent.T
    mask = one_block.strip_mask(tiling, refs, e, n)
    scores = one_block.strip_scores(tiling, refs, e, n, held)
    d_dropped = [
        tiles_of(contract(strips.mask_other_heads(cotangent, tiling, head), refs["value"][e], 1, 1))
        for head in range(tiling.group)
    ]
    d_scores = []
    for head, (of_head, scale) in enumerate(scores):
        logsumexp = one_block.replicated_column(refs["logsumexp"][e, 0, head : head + 1, strip(n)]) * LOG2_E
        weights = [jnp.exp2(x * (scale * LOG2_E) - logsumexp) for x in of_head]
        if mask is not None:
            weights = [jnp.where(seen, x, 0.0) for seen, x in zip(mask, weights, strict=True)]
        dropped, d_weights = weights, d_dropped[head]
        if random_bits[head] is not None:
            kept, factor = one_block.strip_kept(tiling, random_bits[head], n), 1.0 / (1.0 - tiling.dropout_rate)
            dropped = [jnp.where(keep, x * factor, 0.0) for keep, x in zip(kept, weights, strict=True)]
            d_weights = [jnp.where(keep, x * factor, 0.0) for keep, x in zip(kept, d_weights, strict=True)]
        # Not the product of cotangent and context: where one weight is near 1, its rounding to bfloat16 would show.
        delta = functools.reduce(jnp.add, [p * d for p, d in zip(weights, d_weights, strict=True)])
        delta = delta.sum(axis=1, keepdims=True)
        d_scores.append([p * (d - delta) * tiling.scale for p, d in zip(weights, d_weights, strict=True)])
        rows = head_rows(tiling, head)
        dropped = joined([x.astype(query.dtype) for x in dropped])
        _add(refs["sum_d_value"], (e, rows), contract(cotangent_transposed[rows], dropped, 1, 0), first=n == 0)
    if "d_words" not in refs:
        for head in range(tiling.group):
            d_scores_of_head = joined([x.astype(query.dtype) for x in d_scores[head]])
            _add_content(tiling, refs, e, n, head, d_scores_of_head, query_transposed)
        return
    for word in range(held.count):
        packed = [
            words.pack_gradients(list(tiles)) for tiles in zip(*(d_scores[head] for head in held.of(word)), strict=True)
        ]
        for b, tile in enumerate(packed):
            refs["d_words"][e, word, strip(n), strip(b)] = tile
        by_key = [words.unpack_gradients(tile, query.dtype) for tile in packed]
        for k, head in enumerate(held.of(word)):
            _add_content(tiling, refs, e, n, head, joined([x[k] for x in by_key]), query_transposed)
        if "table_key" in refs:
            _add_position(tiling, refs, e, n, word, packed, held, ("query", "key"), query_transposed)


def _add_content(
    tiling: Tiling, refs: dict[str, Any], e: int, n: int, head: int, d_scores: Any, query_transposed: Any
) -> None:
    """Adds the gradients of queries and keys through the content term, given dS of a strip [128,S]."""
    rows = head_rows(tiling, head)
    _add(refs["sum_d_key"], (e, rows), contract(query_transposed[rows], d_scores, 1, 0), first=n == 0)
    refs["sum_d_query"][e, rows, strip(n)] = contract(refs["key_transposed"][e, rows], d_scores, 1, 1)


def _p2c_gradients(tiling: Tiling, refs: dict[str, Any], e: int, n: int, held: Words) -> None:
    """Adds the gradients of strip n of the keys through ``table_query``."""
    for word in range(held.count):
        packed = [refs["d_words"][e, word, strip(b), strip(n)].T for b in range(tiling.strips)]
        key_transposed = refs["key_transposed"][e, :, strip(n)]
        _add_position(tiling, refs, e, n, word, packed, held, ("key", "query"), key_transposed)


def _add_position(
    tiling: Tiling,
    refs: dict[str, Any],
    e: int,
    n: int,
    word: int,
    packed: list[Any],
    held: Words,
    names: tuple[str, str],
    transposed: Any,
) -> None:
    """Adds the gradients of a table and of the side that it meets, given dS of a strip of that side as words.

    Args:
      packed: tiles of words, with rows of that side.
      names: of the side, and of its table.
      transposed: the side's strip [W,128].
    """
    side, table = names
    by_distance = [
        words.unpack_gradients(tile, transposed.dtype) for tile in tiles_of(strips.rel_unshift(joined(packed)))
    ]
    window = strips.strip_window(tiling, n)
    for k, head in enumerate(held.of(word)):
        rows, d_scores = head_rows(tiling, head), joined([x[k] for x in by_distance])
        added = contract(refs[f"table_{table}_transposed"][rows, window], d_scores, 1, 1)
        refs[f"sum_d_{side}"][e, rows, strip(n)] += added
        refs[f"d_table_{table}"][rows, window] += contract(transposed[rows], d_scores, 1, 0)


def _add(ref: Any, at: tuple[Any, ...], x: Any, *, first: bool) -> None:
    ref[at] = x if first else ref[at] + x
