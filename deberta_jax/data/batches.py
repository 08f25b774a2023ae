"""Which examples make up which batch, and the batch itself.

Everything is planned from (seed, epoch, lengths) by numpy, the same on every process, so that a run's place in the
data is one number: the step, or the example it begins with. grain reads the planned batches by index, ahead of the
device.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from deberta_jax.data.features import TOKEN, Features
from deberta_jax.data.packing import Packing, choose_packing, empty_labels, pack, packed_batch
from deberta_jax.sharding import WHOLE, RowShare

# Batches sorted by length among themselves: enough to fill the buckets well, few enough to keep the order random.
_SORTED_TOGETHER = 32


def length_buckets(lengths: np.ndarray, max_length: int, count: int = 4) -> tuple[int, ...]:
    """A few padded lengths, multiples of 8, that hold all examples: each is one compiled program.

    They lie at evenly spaced quantiles of the lengths, so that no bucket is rare.
    """
    lengths = np.minimum(lengths, max_length)
    quantiles = np.quantile(lengths, np.arange(1, count + 1) / count, method="higher")
    return tuple(sorted({min(-(-int(q) // 8) * 8, max_length) for q in quantiles}))


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a batch over all processes: its examples, their tokens, and the places for tokens that it has."""

    examples: int
    tokens: int
    token_slots: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """One epoch: batch i holds the examples ``members[i]`` padded to ``padded[i]`` tokens."""

    members: tuple[np.ndarray, ...]
    padded: tuple[int, ...]


def shuffled(count: int, batch_size: int, *, seed: int, epoch: int) -> tuple[np.ndarray, ...]:
    """Every example once, in random order, in batches; the last may be smaller."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return tuple(order[i : i + batch_size] for i in range(0, count, batch_size))


def plan_epoch(lengths: np.ndarray, batch_size: int, buckets: Sequence[int], *, seed: int, epoch: int) -> Plan:
    """Every example once, in random order; examples of like length together; the last batch may be smaller."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    stretch = batch_size * _SORTED_TOGETHER
    batches = []
    for start in range(0, len(order), stretch):
        together = order[start : start + stretch]
        together = together[np.argsort(lengths[together], kind="stable")]
        batches += [together[i : i + batch_size] for i in range(0, len(together), batch_size)]
    batches = [batches[i] for i in rng.permutation(len(batches))]
    return Plan(tuple(batches), tuple(_bucket(lengths[members], buckets) for members in batches))


def plan_in_order(lengths: np.ndarray, batch_size: int, buckets: Sequence[int]) -> Plan:
    """Every example once, longest first, so that the largest program meets its memory limit at once."""
    order = np.argsort(-lengths, kind="stable")
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return Plan(tuple(batches), tuple(_bucket(lengths[members], buckets) for members in batches))


def _bucket(lengths: np.ndarray, buckets: Sequence[int]) -> int:
    longest = int(lengths.max())
    return next(bucket for bucket in buckets if bucket >= longest)


def pad_texts(features: Features, texts: Iterable[Any], rows: int, length: int, pad_id: int) -> dict[str, np.ndarray]:
    """These texts as arrays [rows, length]; rows beyond them are padding.

    Returns:
      input_ids and token_type_ids int32, attention_mask bool.
    """
    batch = {
        "input_ids": np.full((rows, length), pad_id, np.int32),
        "attention_mask": np.zeros((rows, length), bool),
        "token_type_ids": np.zeros((rows, length), np.int32),
    }
    for row, i in enumerate(texts):
        start, end = features.starts[i], features.starts[i + 1]
        batch["input_ids"][row, : end - start] = features.ids[start:end]
        batch["token_type_ids"][row, : end - start] = features.types[start:end]
        batch["attention_mask"][row, : end - start] = True
    return batch


def pad_batch(features: Features, members: np.ndarray, rows: int, length: int, pad_id: int) -> dict[str, np.ndarray]:
    """The examples ``members``, one a row; rows beyond them are padding that counts nowhere.

    Returns:
      What ``pad_texts`` gives, [rows, length], or [rows, choices, length] where examples have choices; and labels where
      the features have them: [rows] or [rows, C]; [rows, length] for tokens; [rows, 2] for answers. In rows of padding
      they are -100, -1 for an answer, NaN for a float.
    """
    texts = [text for i in members for text in features.texts_of(int(i))]
    batch = pad_texts(features, texts, rows * features.choices, length, pad_id)
    if features.choices > 1:
        batch = {name: array.reshape(rows, features.choices, length) for name, array in batch.items()}
    if features.labels is None:
        return batch
    labels = batch["labels"] = empty_labels(features, rows, length, None)
    if features.level == TOKEN:
        for row, i in enumerate(members):
            start, end = features.starts[i], features.starts[i + 1]
            labels[row, : end - start] = features.labels[start:end]
    else:
        labels[: len(members)] = features.labels[members]
    return batch


def example_lengths(features: Features) -> np.ndarray:
    """The longest text of each example: what a row of padded choices must hold."""
    return features.lengths.reshape(-1, features.choices).max(axis=1)


def example_tokens(features: Features) -> np.ndarray:
    """All tokens of each example: what a packed row must hold."""
    return features.lengths.reshape(-1, features.choices).sum(axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """What decides which examples are in which step: everything but how they are laid out in rows."""

    batch_size: int
    seed: int
    epochs: int


class TrainingBatches:
    """The batches of a whole run by step, for this process's share of each batch's rows.

    ``batch_size`` examples make a step, however they are laid out: in rows of their own, padded to one of
    ``buckets``; or, without buckets, packed several to a row. ``multiple``: row counts are multiples of it, so that
    devices and micro-batches divide them. ``share``: the rows that this process reads; it reads no other's tokens.
    """

    def __init__(
        self,
        features: Features,
        order: Order,
        pad_id: int,
        *,
        buckets: tuple[int, ...] = (),
        row_length: int = 0,
        multiple: int = 1,
        share: RowShare = WHOLE,
    ):
        self.features, self.order, self.pad_id = features, order, pad_id
        self.buckets, self.share = buckets, share
        self.steps_per_epoch = -(-len(features) // order.batch_size)
        self.tokens = example_tokens(features)
        self.padded_rows = -(-order.batch_size // multiple) * multiple
        self.packing: Packing | None = None
        if not buckets:
            batches = [members for epoch in range(order.epochs) for members in self._shuffled(epoch)]
            self.packing = choose_packing(self.tokens, batches, row_length=row_length, multiple=multiple)
        self.plan = functools.lru_cache(maxsize=2)(self._plan)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.order.epochs

    def _shuffled(self, epoch: int) -> tuple[np.ndarray, ...]:
        return shuffled(len(self.features), self.order.batch_size, seed=self.order.seed, epoch=epoch)

    def _plan(self, epoch: int) -> Plan:
        if self.packing is not None:
            batches = self._shuffled(epoch)
            return Plan(batches, (self.packing.row_length,) * len(batches))
        lengths = example_lengths(self.features)
        return plan_epoch(lengths, self.order.batch_size, self.buckets, seed=self.order.seed, epoch=epoch)

    def members(self, step: int) -> np.ndarray:
        """The examples of a step, in the order of the global batch."""
        epoch, index = divmod(int(step), self.steps_per_epoch)
        return self.plan(epoch).members[index]

    def position(self, step: int) -> int:
        """The number, over all epochs, of the example that a step begins with."""
        epoch, index = divmod(int(step), self.steps_per_epoch)
        return epoch * len(self.features) + index * self.order.batch_size

    def size(self, step: int) -> Size:
        epoch, index = divmod(int(step), self.steps_per_epoch)
        members, length = self.plan(epoch).members[index], self.plan(epoch).padded[index]
        rows = self.padded_rows * self.features.choices
        if self.packing is not None:
            rows = self.packing.rows(pack(self.tokens[members], length, self.packing.slots)[1])
        return Size(len(members), int(self.tokens[members].sum()), rows * length)

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        epoch, index = divmod(int(step), self.steps_per_epoch)
        members, length = self.plan(epoch).members[index], self.plan(epoch).padded[index]
        if self.packing is not None:
            row_of, needed = pack(self.tokens[members], length, self.packing.slots)
            local = self.share.rows(self.packing.rows(needed))
            return packed_batch(self.features, members, row_of, local, self.packing, self.pad_id)
        local = self.share.rows(self.padded_rows)
        return pad_batch(self.features, members[local[local < len(members)]], len(local), length, self.pad_id)

    def examples(self) -> Iterator[dict[str, np.ndarray]]:
        """One batch of padding, of all processes' rows, for every shape that the run will meet."""
        nobody = np.empty(0, np.int64)
        if self.packing is not None:
            for count in self.packing.counts:
                yield packed_batch(self.features, nobody, nobody, np.arange(count), self.packing, self.pad_id)
        for length in self.buckets:
            yield pad_batch(self.features, nobody, self.padded_rows, length, self.pad_id)

    def padding(self) -> float:
        """Share of the first epoch's places that hold no token."""
        sizes = [self.size(step) for step in range(self.steps_per_epoch)]
        return 1 - sum(size.tokens for size in sizes) / sum(size.token_slots for size in sizes)


def read_ahead(source: Any, start: int) -> Iterator[dict[str, np.ndarray]]:
    """``source[start], source[start + 1], ...`` to its end, made by threads ahead of their use."""
    import grain  # as slow to import as JAX, and only training needs it

    dataset = grain.MapDataset.source(source)[start:]
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))
