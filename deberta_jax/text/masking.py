"""Which tokens a masked language model predicts, and what it sees in their places; numpy, seeded by the caller."""

import numpy as np


def mask_tokens(
    ids: np.ndarray,
    predictable: np.ndarray,
    rng: np.random.Generator,
    *,
    count: int,
    mask_id: int,
    random_ids: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """BERT's masking with a fixed number of targets a row: 80 % become [MASK], 10 % a random token, 10 % stay.

    The targets are drawn over the whole row without replacement, so every predictable token is equally likely.

    Args:
      ids: int [B,T]. predictable: bool [B,T], False for special tokens and padding.
      count: P, the most targets of a row; a row with fewer predictable tokens has fewer.
      mask_id: of [MASK]. random_ids: the first id, and one beyond the last, that a random token may be.

    Returns:
      what the model sees [B,T], the targets' positions [B,P] ascending (-1: none), and their true ids [B,P] (-100:
      none), all int32.
    """
    draw = np.where(predictable, rng.random(ids.shape), np.inf)
    chosen = np.argsort(draw, axis=1)[:, :count]
    real = np.isfinite(np.take_along_axis(draw, chosen, axis=1))
    positions = np.sort(np.where(real, chosen, ids.shape[1]), axis=1)
    real = positions < ids.shape[1]
    safe = np.where(real, positions, 0)
    labels = np.where(real, np.take_along_axis(ids, safe, axis=1), -100)

    fate = rng.random(positions.shape)
    random = rng.integers(*random_ids, positions.shape)
    shown = np.where(fate < 0.8, mask_id, np.where(fate < 0.9, random, labels))
    seen = ids.copy()
    row, column = np.nonzero(real)
    seen[row, positions[row, column]] = shown[row, column]
    return seen.astype(np.int32), np.where(real, positions, -1).astype(np.int32), labels.astype(np.int32)
