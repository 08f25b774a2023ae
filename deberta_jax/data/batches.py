"""Which examples make up which batch, and the batch itself.

Everything is planned from (seed, epoch, lengths) by numpy, the same on every process, so that a run's place in the
data is one number: the step. grain reads the planned batches by index, ahead of the device.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from deberta_jax.data.features import Features

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
class Plan:
    """One epoch: batch i holds the examples ``members[i]`` padded to ``padded[i]`` tokens."""

    members: tuple[np.ndarray, ...]
    padded: tuple[int, ...]


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


def pad_batch(features: Features, members: np.ndarray, rows: int, length: int, pad_id: int) -> dict[str, np.ndarray]:
    """The examples ``members`` as arrays [rows, length]; rows beyond them are padding that counts nowhere.

    Returns:
      input_ids and token_type_ids int32, attention_mask bool, and labels [rows] where the features have them: -100, or
      NaN for a regression, in rows of padding.
    """
    batch = {
        "input_ids": np.full((rows, length), pad_id, np.int32),
        "attention_mask": np.zeros((rows, length), bool),
        "token_type_ids": np.zeros((rows, length), np.int32),
    }
    for row, i in enumerate(members):
        start, end = features.starts[i], features.starts[i + 1]
        batch["input_ids"][row, : end - start] = features.ids[start:end]
        batch["token_type_ids"][row, : end - start] = features.types[start:end]
        batch["attention_mask"][row, : end - start] = True
    if features.labels is not None:
        regression = features.labels.dtype == np.float32
        batch["labels"] = np.full(rows, np.nan if regression else -100, features.labels.dtype)
        batch["labels"][: len(members)] = features.labels[members]
    return batch


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingBatches:
    """The batches of a whole run by step, for this process's share of each batch's rows.

    ``rows`` is the global number of rows, ``batch_size`` rounded up to what the devices divide evenly; the process
    reads only rows ``share`` of them (all where None).
    """

    features: Features
    batch_size: int
    rows: int
    buckets: tuple[int, ...]
    seed: int
    epochs: int
    pad_id: int
    share: slice | None = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.features) // self.batch_size)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs

    @functools.lru_cache(maxsize=2)  # noqa: B019 - lives as long as the run
    def plan(self, epoch: int) -> Plan:
        return plan_epoch(self.features.lengths, self.batch_size, self.buckets, seed=self.seed, epoch=epoch)

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        epoch, index = divmod(int(step), self.steps_per_epoch)
        plan = self.plan(epoch)
        members, length = plan.members[index], plan.padded[index]
        local = range(self.rows)[self.share or slice(None)]
        mine = members[local.start : local.stop]
        return pad_batch(self.features, mine, len(local), length, self.pad_id)

    def examples(self) -> Iterator[dict[str, np.ndarray]]:
        """One batch of padding, of all processes' rows, for every shape that the run will meet."""
        for length in self.buckets:
            yield pad_batch(self.features, np.empty(0, np.int64), self.rows, length, self.pad_id)


def read_ahead(source: Any, start: int) -> Iterator[dict[str, np.ndarray]]:
    """``source[start], source[start + 1], ...`` to its end, made by threads ahead of their use."""
    import grain  # as slow to import as JAX, and only training needs it

    dataset = grain.MapDataset.source(source)[start:]
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))
