"""Distance between two tokens -> row of the relative table, in numpy at trace time.

``distance = i - j``: query index minus key index. Logarithmic buckets are those of DeBERTa v2/v3 (Microsoft's
``make_log_bucket_position``): exact up to half the buckets, logarithmic to ``max_distance - 1``. Both logarithms are
float64 on the host: at ``|distance| = max_distance - 1`` their ratio must be exactly 1, or ``ceil`` jumps a bucket.
"""

import numpy as np
from jaxtyping import Int


def log_bucket(distance: Int[np.ndarray, "..."], buckets: int, max_distance: int) -> Int[np.ndarray, "..."]:
    """Signed bucket of a signed distance; odd and monotone. Identity up to ``buckets // 2``."""
    half = buckets // 2
    size = np.abs(distance)
    # Inside the linear part the logarithm is not used; its argument only has to be positive.
    ratio = np.log(np.maximum(size, half) / half) / np.log((max_distance - 1) / half)
    logarithmic = half + np.ceil(ratio * (half - 1))
    return np.where(size <= half, distance, np.sign(distance) * logarithmic).astype(np.int64)


def table_rows(length: int, span: int, *, buckets: int, max_distance: int, clamp: bool) -> Int[np.ndarray, " U"]:
    """Row of the relative table for every distance from ``-(length-1)`` to ``length-1``: int32 [2*length - 1].

    Args:
      span: half the number of table rows; row ``span`` is distance 0, row ``2*span - 1`` the far left context.
      buckets: number of log buckets a side, or below 1 for one row per distance (v1).
      max_distance: largest distance told apart.
      clamp: bring distances into ``±(max_distance - 1)`` first, as the original training code does. Row 0 is then
        never read, which no text of up to ``max_distance`` tokens reads either; transformers reads it beyond.
    """
    distance = np.arange(-(length - 1), length, dtype=np.int64)
    if clamp:
        distance = np.clip(distance, 1 - max_distance, max_distance - 1)
    position = log_bucket(distance, buckets, max_distance) if buckets > 0 else distance
    return np.clip(position + span, 0, 2 * span - 1).astype(np.int32)


def reachable_rows(rows: Int[np.ndarray, " U"]) -> tuple[Int[np.ndarray, " R"], Int[np.ndarray, " U"]]:
    """The rows that some distance reads, ascending, and ``rows`` renumbered into them.

    A text of 128 tokens reads 255 of a released table's 512 rows: only those need to be projected.
    """
    kept, renumbered = np.unique(rows, return_inverse=True)
    return kept.astype(np.int32), renumbered.astype(np.int32)
