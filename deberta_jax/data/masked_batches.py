"""Batches for pre-training: rows in a random order, masked anew at every visit, and held-out rows masked once for all.

Which rows and which masks follow from the seed and the global position of an example alone: neither from the batch
size, nor from which process reads it, nor from what was read before.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from deberta_jax.data.batches import Size
from deberta_jax.data.rows import Rows
from deberta_jax.sharding import WHOLE, RowShare
from deberta_jax.text.mlm_masking import Masking, Vocabulary, mask_tokens

# Keeps the masks of held-out rows apart from those of the first visit in training.
_HELD_OUT = 1 << 62


@dataclasses.dataclass(frozen=True)
class Masker:
    """Masks rows: see ``text.mlm_masking.mask_tokens``."""

    vocabulary: Vocabulary
    masking: Masking

    def __call__(self, rows: dict[str, np.ndarray], seed: int, positions: np.ndarray) -> dict[str, np.ndarray]:
        """The rows with what the model sees as ``input_ids``; ``positions`` and ``labels`` int32 [n,P]; and ``draws``
        uint32 [n,2], a key for what is drawn of a row on the devices.

        ``positions``, int64 [n]: the number of each row over all epochs, which its mask and its key follow from.
        """
        real = rows["segment_ids"] > 0 if "segment_ids" in rows else rows["attention_mask"]
        ids, targets, labels = mask_tokens(
            rows["input_ids"], real, self.vocabulary, self.masking, seed=seed, rows=positions
        )
        key = _mix(_mix(np.full(len(positions), seed & 0xFFFFFFFFFFFFFFFF, np.uint64)) + positions.astype(np.uint64))
        draws = np.stack([key >> np.uint64(32), key & np.uint64(0xFFFFFFFF)], axis=1).astype(np.uint32)
        return {**rows, "input_ids": ids, "positions": targets, "labels": labels, "draws": draws}


def shuffled_index(position: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Example ``position`` of a run that visits ``count`` rows anew in a random order every epoch -> its row, int64.

    A Feistel network over the smallest even number of bits, applied again where it leads beyond ``count``: a
    permutation that takes no memory and is computed at any place.
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
    """The finaliser of splitmix64: every bit of the result depends on every bit of ``value``, uint64."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedBatches:
    """A run's batches by step: ``batch_size`` rows each, visited in a new random order every epoch.

    An epoch ends where the rows do, within a batch. A process reads and masks the rows of its ``share`` alone.
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
        """What ``Masker`` gives: input_ids and segment_ids or attention_mask [B,T], positions and labels [B,P], draws
        [B,2]."""
        position = self.position(step) + self.share.rows(self.batch_size)
        rows = self.rows.read(shuffled_index(position, len(self.rows), self.seed))
        return self.masker(rows, self.seed, position)

    def position(self, step: int) -> int:
        """The number, over all epochs, of the row that a step begins with."""
        return int(step) * self.batch_size

    def size(self, step: int) -> Size:
        position = self.position(step) + np.arange(self.batch_size)
        tokens = self.rows.tokens(shuffled_index(position, len(self.rows), self.seed))
        return Size(self.batch_size, tokens, self.batch_size * self.rows.length)

    def examples(self) -> Iterator[dict[str, np.ndarray]]:
        yield dataclasses.replace(self, share=WHOLE)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutBatches:
    """All rows once, in order, in batches of one size, always masked alike; beyond the last row stands padding."""

    rows: Rows
    masker: Masker
    batch_size: int
    seed: int
    share: RowShare = WHOLE

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """As ``MaskedBatches``; padding has attention_mask False or segment 0, no positions and no labels."""
        index = int(step) * self.batch_size + self.share.rows(self.batch_size)
        there = index < len(self.rows)
        rows = self.rows.read(np.where(there, index, 0))
        for name, value in (("input_ids", self.rows.pad_id), ("attention_mask", False), ("segment_ids", 0)):
            if name in rows:
                rows[name][~there] = value
        return self.masker(rows, self.seed, _HELD_OUT + index)
