"""Maps the distance between two tokens to a row of the relative table, in numpy while a program is traced.

The distance is ``i - j``, query position minus key position. Logarithmic buckets are those of DeBERTa v2/v3
(Microsoft's ``make_log_bucket_position``): exact up to half the buckets, logarithmic up to ``max_distance - 1``.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def log_bucket(distance: Int[np.ndarray, "..."], buckets: int, max_distance: int) -> Int[np.ndarray, "..."]:
    """Returns the signed bucket of a signed distance: odd, monotone, the identity up to ``buckets // 2``."""
    half = buckets // 2
    size = np.abs(distance)
    # Both logarithms are float64: at max_distance - 1 their ratio must be exactly 1, or ceil gives the next bucket.
    # In the linear part the logarithm is not used; its argument only has to be positive.
    ratio = np.log(np.maximum(size, half) / half) / np.log((max_distance - 1) / half)
    logarithmic = half + np.ceil(ratio * (half - 1))
    return np.where(size <= half, distance, np.sign(distance) * logarithmic).astype(np.int64)


def make_relative_index(
    length: int, span: int, *, buckets: int, max_distance: int, clamp: bool
) -> Int[np.ndarray, " U"]:
    """Returns the table row of each distance from ``-(length-1)`` to ``length-1``: int32 [2*length - 1].

    Args:
      length: tokens of a row.
      span: half the number of table rows; row ``span`` is distance 0, row ``2*span - 1`` the largest distances.
      buckets: number of log buckets on a side; below 1 each distance has a row of its own (v1).
      max_distance: distances from ``max_distance - 1`` on are not distinguished.
      clamp: clamp distances to ``±(max_distance - 1)`` first, as the original training code does. Row 0 is then never
        read; texts of up to ``max_distance`` tokens do not read it either way. transformers reads it in longer texts.
    """
    distance = np.arange(-(length - 1), length, dtype=np.int64)
    if clamp:
        distance = np.clip(distance, 1 - max_distance, max_distance - 1)
    position = log_bucket(distance, buckets, max_distance) if buckets > 0 else distance
    return np.clip(position + span, 0, 2 * span - 1).astype(np.int32)


def compact_relative_index(
    relative_index: Int[np.ndarray, " U"],
) -> tuple[Int[np.ndarray, " R"], Int[np.ndarray, " U"]]:
    """Returns the table rows that some distance reads, ascending, and the index into those rows alone, both int32.

    A text of 128 tokens reads 255 of a released table's 512 rows: only those need to be projected.
    """
    rows, compact = np.unique(relative_index, return_inverse=True)
    return rows.astype(np.int32), compact.astype(np.int32)


def pairwise_index(relative_index: Int[np.ndarray, " U"]) -> Int[np.ndarray, "T T"]:
    """Returns the table row of each pair (query, key) [T,T], from that of each distance [2T-1]."""
    length = (len(relative_index) + 1) // 2
    index = np.arange(length)
    return relative_index[index[:, None] - index[None, :] + length - 1]


def index_by_distance(relative_index: Int[np.ndarray, " U"], *, descending: bool) -> Int[np.ndarray, " W"]:
    """Returns the table rows by distance, ascending or descending, and one more that no score reads: [2T].

    For queries the order is descending: in row i of ``rel_shift``'s result the keys j ascend, so i - j descends. For
    keys it is ascending.
    """
    ordered = relative_index[::-1] if descending else relative_index
    return np.append(ordered, ordered[-1])


def table_by_distance(
    table: Float[Array, "R N H"], relative_index: Int[np.ndarray, " U"], *, descending: bool
) -> Float[Array, "W N H"]:
    """Returns the table with one row for each distance, float32 [2T,N,H], in the order of ``index_by_distance``.

    The result is float32 because of its gradient: many distances read one row, and their gradients are summed here.
    """
    rows = index_by_distance(relative_index, descending=descending)
    return jnp.take(table.astype(jnp.float32), rows, axis=0, mode="clip")
