"""Plain text for pre-training: rows of contiguous tokens, masked anew at every visit."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from deberta_jax.data.batches import Size
from deberta_jax.data.features import TokenizerLike
from deberta_jax.errors import InputError
from deberta_jax.sharding import WHOLE, RowShare
from deberta_jax.text.masking import mask_tokens


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 text file that are not blank.

    Raises:
      InputError: a file that is not there, is empty or is no UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise InputError(f"{path}: no text; the file is empty")
    return lines


def contiguous_rows(tokenizer: TokenizerLike, lines: Sequence[str], length: int) -> np.ndarray:
    """All lines' tokens one after the other, cut into rows ``[CLS] ... [SEP]`` of exactly ``length``: int32 [n,T].

    What is left over at the end, less than a row, is not used. As Microsoft prepared its masked-LM data.
    """
    encoded = tokenizer.encode_ragged(lines)
    cls, sep = encoded[0][0][0], encoded[0][0][-1]
    stream = np.concatenate([ids[1:-1] for ids, _ in encoded])
    count = len(stream) // (length - 2)
    if count == 0:
        raise InputError(f"the text has {len(stream)} tokens; one row needs {length - 2}")
    body = stream[: count * (length - 2)].reshape(count, length - 2)
    edge = np.ones((count, 1), np.int32)
    return np.concatenate([cls * edge, body, sep * edge], axis=1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Masker:
    """How rows are masked: see ``text.masking.mask_tokens``."""

    count: int
    mask_id: int
    random_ids: tuple[int, int]
    special_ids: tuple[int, ...]

    def __call__(self, ids: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        predictable = ~np.isin(ids, self.special_ids)
        seen, positions, labels = mask_tokens(
            ids, predictable, rng, count=self.count, mask_id=self.mask_id, random_ids=self.random_ids
        )
        return {
            "input_ids": seen,
            "attention_mask": np.ones(ids.shape, bool),
            "positions": positions,
            "labels": labels,
        }


@dataclasses.dataclass(frozen=True)
class MaskedBatches:
    """Batches of masked rows by step; which rows and which masks follow from (seed, step) alone.

    A process reads the rows of its ``share``; masks are drawn for all, so that they do not depend on who reads them.
    """

    rows: np.ndarray
    batch_size: int
    steps: int
    seed: int
    masker: Masker
    share: RowShare = WHOLE

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """Rows are visited in a new random order every epoch; an epoch ends where the rows do, within a batch."""
        first = int(step) * self.batch_size
        position = np.arange(first, first + self.batch_size)
        epochs = position // len(self.rows)
        index = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs):
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.rows))
            here = epochs == epoch
            index[here] = order[position[here] % len(self.rows)]
        batch = self.masker(self.rows[index], np.random.default_rng([self.seed, 1, int(step)]))
        return {name: array[self.share.rows(self.batch_size)] for name, array in batch.items()}

    def position(self, step: int) -> int:
        """The number, over all epochs, of the row that a step begins with."""
        return int(step) * self.batch_size

    def size(self, step: int) -> Size:
        del step
        places = self.batch_size * self.rows.shape[1]
        return Size(self.batch_size, places, places)

    def examples(self) -> Iterator[dict[str, np.ndarray]]:
        yield dataclasses.replace(self, share=WHOLE)[0]
