"""Provides masked batches for pre-training: training rows in random order with new masks in every epoch, and held-out
rows with fixed masks.

Rows and masks depend only on the seed and the position of an example in the run: not on the batch size, the process
that reads it, or what was read before.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from deberta_jax.data.batches import Size, repeated
from deberta_jax.data.rows import Rows
from deberta_jax.sharding import WHOLE, RowShare
from deberta_jax.text.mlm_masking import Masking, Vocabulary, mask_tokens

# Added to the numbers of held-out rows, so that their masks differ from those of training rows.
_HELD_OUT = 1 << 62


@dataclasses.dataclass(frozen=True)
class Masker:
    """Masks rows with ``mask_tokens``."""

    vocabulary: Vocabulary
    masking: Masking

    def __call__(self, rows: dict[str, np.ndarray], seed: int, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Masks rows.

        Args:
          rows: the result of ``Rows.read``.
          seed: the seed of the run.
          positions: int64 [n], the number of each row over all epochs, which determines its mask.

        Returns:
          The rows with masked ``input_ids``; ``positions`` and ``labels`` of the targets, int32 [n,P]; and ``draws``
          uint32 [n,2], a random key of each row for what is drawn on the devices.
        """
        real = rows["segment_ids"] > 0 if "segment_ids" in rows else rows["attention_mask"]
        ids, targets, labels = mask_tokens(
            rows["input_ids"], real, self.vocabulary, self.masking, seed=seed, rows=positions
        )
        key = _mix(_mix(np.full(len(positions), seed & 0xFFFFFFFFFFFFFFFF, np.uint64)) + positions.astype(np.uint64))
        draws = np.stack([key >> np.uint64(32), key & np.uint64(0xFFFFFFFF)], axis=1).astype(np.uint32)
        return {**rows, "input_ids": ids, "positions": targets, "labels": labels, "draws": draws}


def shuffled_index(position: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the rows of the given positions in a run that visits all rows in a new random order in every epoch.

    The permutation is a Feistel network over the smallest even number of bits, which is applied again to results that
    are not below ``count``. It needs no memory and can be computed at any position.

    Args:
      position: int [n], positions of examples in the run, over all epochs.
      count: the number of rows.
      seed: the seed of the run.

    Returns:
      int64 [n], the row of each position.
    """
    position = np.asarray(position, np.uint64)
    epoch, at = np.divmod(position, np.uint64(count))
    half = np.uint64(max(1, -(-(count - 1).bit_length() // 2)))
    mask = (np.uint64(1) << half) - np.uint64(1)
    key = _mix(_mix(np.full_like(epoch, seed & 0xFFFFFFFFFFFFFFFF)) + epoch)
    out = at.copy()
    todo = np.arange(len(at))
    while len(todo):
        left, right = out[todo] >> half, out[todo] & mask
        for number in range(6):
            left, right = right, left ^ (_mix(key[todo] + (right << np.uint64(8)) + np.uint64(number)) & mask)
        out[todo] = (left << half) | right
        todo = todo[out[todo] >= count]
    return out.astype(np.int64)


def _mix(value: np.ndarray) -> np.ndarray:
    """Computes the finaliser of splitmix64, a hash of uint64 in which each bit depends on all bits of ``value``."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedBatches:
    """Provides the batches of a run by step, with the rows in a new random order in every epoch.

    An epoch may end within a batch. A process reads and masks only its own rows.

    Attributes:
      rows: the rows.
      masker: masks them.
      batch_size: rows per step over all processes.
      steps: steps of the run.
      seed: the seed of order and masks.
      share: the rows of each batch that this process reads.
    """

    rows: Rows
    masker: Masker
    batch_size: int
    steps: int
    seed: int
    share: RowShare = WHOLE

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """Returns a batch of ``Masker``: input_ids and segment_ids or attention_mask [B,T], positions and labels [B,P],
        draws [B,2]."""
        position = self.position(step) + self.share.rows(self.batch_size)
        rows = self.rows.read(shuffled_index(position, len(self.rows), self.seed))
        return self.masker(rows, self.seed, position)

    def position(self, step: int) -> int:
        """Returns the position in the run, over all epochs, of the first row of a step."""
        return int(step) * self.batch_size

    def size(self, step: int) -> Size:
        """Returns the size of a step over all processes."""
        position = self.position(step) + np.arange(self.batch_size)
        tokens = self.rows.tokens(shuffled_index(position, len(self.rows), self.seed))
        return Size(self.batch_size, tokens, self.batch_size * self.rows.length)

    def examples(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields one batch with the rows of all processes, which has the only shape of the run.

        It is a view of one row, so a large batch takes no memory.
        """
        yield repeated(dataclasses.replace(self, batch_size=1, share=WHOLE)[0], self.batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutBatches:
    """Provides all rows once, in order and with fixed masks. The last batch is completed with padding.

    Attributes as in ``MaskedBatches``.
    """

    rows: Rows
    masker: Masker
    batch_size: int
    seed: int
    share: RowShare = WHOLE

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """Returns a batch as ``MaskedBatches``. Padding has attention_mask False or segment 0, and no targets."""
        index = int(step) * self.batch_size + self.share.rows(self.batch_size)
        there = index < len(self.rows)
        rows = self.rows.read(np.where(there, index, 0))
        for name, value in (("input_ids", self.rows.pad_id), ("attention_mask", False), ("segment_ids", 0)):
            if name in rows:
                rows[name][~there] = value
        return self.masker(rows, self.seed, _HELD_OUT + index)
