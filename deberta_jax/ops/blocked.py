"""Disentangled attention in cache-sized pieces: head by head, query and key rows in blocks, recomputed in the backward.

A block of w rows meets only T+w distances of the table, so its position product is that much narrower than the whole
matrix's 2T, and a head's scores stay in a CPU's cache. Only the inputs are kept for the backward pass.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.ops.masking import dropout, masked_softmax, visible_pairs
from deberta_jax.ops.products import F32, product
from deberta_jax.ops.shift import by_distance, slide

# Rows of a block by length: the narrower, the less of each product is cut away, the more blocks there are. Measured.
_BLOCKS = ((256, 32), (1 << 62, 64))
# Above this length one head's scores of a whole batch leave the cache, and examples are taken one by one too.
_WHOLE_BATCH = 256


def blocked_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T N H"],
    value: Float[Array, "B T N H"],
    pos_key: Float[Array, "R N H"] | None,
    pos_query: Float[Array, "R N H"] | None,
    rows: Int[np.ndarray, " U"],
    *,
    scale: float,
    texts: Int[Array, "B T"] | None = None,
    pairs: Bool[Array, "B T T"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> Float[Array, "B T N H"]:
    """Context; arguments as in ``ops.attention.disentangled_attention``."""
    batch, length, heads, _ = query.shape
    pairs = visible_pairs(texts, pairs)
    # In float32 the scale goes into operands, which saves a pass over the scores; in bfloat16 that would cost accuracy.
    folded = scale if query.dtype == F32 else 1.0
    descending = None if pos_key is None else by_distance(pos_key, rows, descending=True).transpose(1, 0, 2)
    ascending = (
        None if pos_query is None else by_distance(pos_query * folded, rows, descending=False).transpose(1, 0, 2)
    )
    keys = None if dropout_key is None or dropout_rate == 0 else jax.random.split(dropout_key, heads)

    @jax.checkpoint
    def attend(query, key, value, pairs, descending, ascending, dropout_key):
        scores = product("BTH,BSH->BTS", query, key)
        if descending is not None:
            scores += position_scores(query, descending)
        if ascending is not None:
            scores += position_scores(key, ascending).swapaxes(-1, -2)
        scores = scores if folded != 1.0 else scores * scale
        weights = dropout(masked_softmax(scores, pairs), dropout_rate, dropout_key)
        return product("BTS,BSH->BTH", weights.astype(value.dtype), value).astype(value.dtype)

    def one_head(xs):
        query, key, value, descending, ascending, dropout_key = xs
        if length <= _WHOLE_BATCH:
            return attend(query, key, value, pairs, descending, ascending, dropout_key)
        each = None if dropout_key is None else jax.random.split(dropout_key, batch)

        def one_example(ys):
            query, key, value, pairs, dropout_key = ys
            pairs = None if pairs is None else pairs[None]
            return attend(query[None], key[None], value[None], pairs, descending, ascending, dropout_key)[0]

        return lax.map(one_example, (query, key, value, pairs, each))

    by_head = [a.transpose(2, 0, 1, 3) for a in (query * folded if folded != 1.0 else query, key, value)]
    return lax.map(one_head, (*by_head, descending, ascending, keys)).transpose(1, 2, 0, 3)


def position_scores(x: Float[Array, "B T H"], table: Float[Array, "U H"]) -> Float[Array, "B T T"]:
    """Products of each row with the table row of its distance to each column, block of rows by block of rows."""
    length = x.shape[1]
    block = next(size for longest, size in _BLOCKS if length <= longest)
    blocks = []
    for start in range(0, length, block):
        size = min(block, length - start)
        window = table[length - start - size : 2 * length - start]
        blocks.append(slide(product("BTH,UH->BTU", x[:, start : start + size], window), size, length))
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=1)
