"""Assigns examples to batches, and builds the batches.

All processes compute the same assignment from (seed, epoch, lengths) with numpy. So the position of a run in its data
is one number: the step, or the first example of the step. Batches are built by index; ``read_ahead`` does so in time.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
from jax.sharding import Mesh

from deberta_jax.data.features import TOKEN, Features
from deberta_jax.data.packing import Packing, choose_packing, empty_labels, pack, packed_batch
from deberta_jax.data.text_batches import pad_texts
from deberta_jax.errors import InputError, check_choice
from deberta_jax.sharding import WHOLE, RowShare, current_mesh, row_share

Batching = Literal["packed", "buckets"]

# Number of batches whose examples are sorted by length together: enough for little padding, few enough for a random
# order.
_SORTED_TOGETHER = 32

# The shapes of packed batches follow from the first epochs of a run, at least this many, and from so many examples; but
# from no more than the most, which pack in seconds.
_SAMPLED_EPOCHS, _SAMPLED_EXAMPLES, _MOST_SAMPLED = 16, 1 << 19, 1 << 22

# The padding that the log shows is that of the first steps, at most so many.
_PADDING_STEPS = 1 << 12

# Of features that are larger, in bytes, and mapped from files, the pages of so many examples are in memory at a time:
# the system maps up to 64 kB of each array with a page that is read.
_LARGE_FEATURES, _MAPPED_EXAMPLES = 1 << 28, 1 << 11

# Batches up to this size have all their rows, however few examples there are.
_SMALL_BATCH = 1024

# A state counts steps in 32 bits.
_MOST_STEPS = 1 << 31

# What is larger must have a use: rows as long as the examples need, and parts of a batch that have examples.
_LONG_ROW, _MANY_PARTS = 1 << 16, 1024


def length_buckets(lengths: np.ndarray, max_length: int, count: int = 4) -> tuple[int, ...]:
    """Chooses padded lengths, at evenly spaced quantiles of the lengths, so that all buckets are used about equally.

    Args:
      lengths: int [n], tokens of each example.
      max_length: longer examples are truncated.
      count: most buckets. Each is one compiled program.

    Returns:
      Ascending multiples of 8, at most ``max_length``.
    """
    lengths = np.minimum(lengths, max_length)
    quantiles = np.quantile(lengths, np.arange(1, count + 1) / count, method="higher")
    return tuple(sorted({min(-(-int(q) // 8) * 8, max_length) for q in quantiles}))


@dataclasses.dataclass(frozen=True)
class Size:
    """Counts the contents of a batch over all processes."""

    examples: int
    tokens: int
    """Tokens of the examples, without padding."""
    token_slots: int
    """Rows times row length: tokens and padding."""


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """Describes an epoch: batch i has the examples ``members[i]`` in rows of ``padded[i]`` tokens."""

    members: tuple[np.ndarray, ...]
    padded: tuple[int, ...]


def batch_rows(batch_size: int, count: int) -> int:
    """Returns the rows of a padded batch: ``batch_size``, but of large batches no more than ``count`` texts need.

    Where there are fewer texts than the batch could hold, a power of two is returned, so that calls with different
    numbers of texts share programs.
    """
    return (
        batch_size if batch_size <= _SMALL_BATCH else min(batch_size, max(_SMALL_BATCH, 1 << (count - 1).bit_length()))
    )


def shuffled(count: int, batch_size: int, *, seed: int, epoch: int) -> tuple[np.ndarray, ...]:
    """Divides the numbers 0 to ``count - 1`` in random order into batches. The last batch may be smaller.

    Returns:
      int64 arrays of at most ``batch_size`` numbers.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return tuple(order[i : i + batch_size] for i in range(0, count, batch_size))


def plan_epoch(lengths: np.ndarray, batch_size: int, buckets: Sequence[int], *, seed: int, epoch: int) -> EpochPlan:
    """Plans an epoch in random order, with examples of similar length in one batch. One batch may be smaller.

    Args:
      lengths: int [n], tokens of each example.
      batch_size: examples per batch.
      buckets: row lengths, ascending.
      seed, epoch: determine the order.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    group = batch_size * _SORTED_TOGETHER
    batches = []
    for start in range(0, len(order), group):
        together = order[start : start + group]
        together = together[np.argsort(lengths[together], kind="stable")]
        batches += [together[i : i + batch_size] for i in range(0, len(together), batch_size)]
    batches = [batches[i] for i in rng.permutation(len(batches))]
    return EpochPlan(tuple(batches), tuple(_bucket(lengths[members], buckets) for members in batches))


def _bucket(lengths: np.ndarray, buckets: Sequence[int]) -> int:
    """Returns the smallest bucket that holds the longest example."""
    longest = int(lengths.max())
    return next(bucket for bucket in buckets if bucket >= longest)


def pad_batch(features: Features, members: np.ndarray, rows: int, length: int, pad_id: int) -> dict[str, np.ndarray]:
    """Pads examples to a batch, one per row. Rows after the last example are padding and have no label.

    Args:
      features: tokens and labels of all examples.
      members: int [n], the examples of this batch.
      rows: rows of the batch.
      length: length of a row.
      pad_id: the token id of padding.

    Returns:
      The arrays of ``pad_texts`` [rows, length], or [rows, choices, length] for multiple choice; and ``labels`` if the
      features have them: [rows] or [rows, C] for examples, [rows, length] for tokens, [rows, 2] for answers. Without a
      label they are -100, -1 for answers, NaN for floats.
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
    """Returns the tokens of the longest text of each example, which determine the length of a padded row: int64 [n]."""
    return features.lengths.reshape(-1, features.choices).max(axis=1)


def example_tokens(features: Features) -> np.ndarray:
    """Returns the tokens of all texts of each example, which a packed row must hold: int64 [n]."""
    return features.lengths.reshape(-1, features.choices).sum(axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleOrder:
    """Determines which examples are in which step, independent of their layout in rows."""

    batch_size: int
    seed: int
    epochs: int


class TrainingBatches:
    """Provides the batches of a whole run by step: of each batch the rows of this process.

    A step has ``order.batch_size`` examples, either one per row and padded to one of ``buckets``, or, without buckets,
    several packed in a row.

    Args:
      features: tokens and labels of all examples.
      order: which examples are in which step.
      pad_id: the token id of padding.
      buckets: row lengths of padded batches, ascending; empty for packed batches.
      row_length: row length of packed batches; 0 chooses one.
      multiple: numbers of rows are multiples of this, so that devices and micro-batches divide them.
      share: the rows of each batch that this process reads.

    Raises:
      InputError: the run would have 2**31 steps or more.
    """

    def __init__(
        self,
        features: Features,
        order: ExampleOrder,
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
        if len(self) >= _MOST_STEPS:
            raise InputError(
                f"--epochs {order.epochs}: makes {len(self)} steps, and a run has fewer than 2**31; lower --epochs or "
                "raise --batch-size"
            )
        self.tokens = example_tokens(features)
        self.padded_rows = -(-batch_rows(order.batch_size, len(features)) // multiple) * multiple
        self.packing = None if buckets else self._packing(row_length, multiple)
        self.plan = functools.lru_cache(maxsize=2)(self._plan)
        self.mapped = 0  # examples that were read since pages were released; threads may miscount it

    def __len__(self) -> int:
        return self.steps_per_epoch * self.order.epochs

    def _packing(self, row_length: int, multiple: int) -> Packing:
        epochs = min(max(_SAMPLED_EPOCHS, _SAMPLED_EXAMPLES // len(self.features)), self.order.epochs)
        steps = min(epochs * self.steps_per_epoch, max(1, _MOST_SAMPLED // self.order.batch_size))
        every = (members for epoch in range(epochs) for members in self._shuffled(epoch))
        batches = itertools.islice(every, steps)
        largest = 0 if steps == len(self) else self.order.batch_size
        return choose_packing(self.tokens, batches, row_length=row_length, multiple=multiple, batch_size=largest)

    def _shuffled(self, epoch: int) -> tuple[np.ndarray, ...]:
        return shuffled(len(self.features), self.order.batch_size, seed=self.order.seed, epoch=epoch)

    def _plan(self, epoch: int) -> EpochPlan:
        if self.packing is not None:
            batches = self._shuffled(epoch)
            return EpochPlan(batches, (self.packing.row_length,) * len(batches))
        lengths = example_lengths(self.features)
        return plan_epoch(lengths, self.order.batch_size, self.buckets, seed=self.order.seed, epoch=epoch)

    def members(self, step: int) -> np.ndarray:
        """Returns the examples of a step, in the order of the global batch: int64 [n]."""
        epoch, index = divmod(int(step), self.steps_per_epoch)
        return self.plan(epoch).members[index]

    def position(self, step: int) -> int:
        """Returns the number, over all epochs, of the first example of a step."""
        epoch, index = divmod(int(step), self.steps_per_epoch)
        return epoch * len(self.features) + index * self.order.batch_size

    def size(self, step: int) -> Size:
        """Returns the size of a step over all processes."""
        epoch, index = divmod(int(step), self.steps_per_epoch)
        members, length = self.plan(epoch).members[index], self.plan(epoch).padded[index]
        rows = self.padded_rows * self.features.choices
        if self.packing is not None:
            rows = self.packing.rows(pack(self.tokens[members], length, self.packing.slots)[1])
        return Size(len(members), int(self.tokens[members].sum()), rows * length)

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        batch = self._batch(int(step))
        self.mapped += self.order.batch_size
        if self.mapped >= _MAPPED_EXAMPLES:
            self.mapped = 0
            if self.features.nbytes > _LARGE_FEATURES:
                self.features.release()
        return batch

    def _batch(self, step: int) -> dict[str, np.ndarray]:
        epoch, index = divmod(step, self.steps_per_epoch)
        members, length = self.plan(epoch).members[index], self.plan(epoch).padded[index]
        if self.packing is not None:
            row_of, needed = pack(self.tokens[members], length, self.packing.slots)
            local = self.share.rows(self.packing.rows(needed))
            return packed_batch(self.features, members, row_of, local, self.packing, self.pad_id)
        local = self.share.rows(self.padded_rows)
        return pad_batch(self.features, members[local[local < len(members)]], len(local), length, self.pad_id)

    def examples(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields one batch of padding, with the rows of all processes, for every shape of the run."""
        empty = np.empty(0, np.int64)
        # All rows of padding are alike, so each batch is a view of one row, and a large batch takes no memory.
        if self.packing is not None:
            row = packed_batch(self.features, empty, empty, np.arange(1), self.packing, self.pad_id)
            for count in self.packing.counts:
                yield repeated(row, count)
        for length in self.buckets:
            yield repeated(pad_batch(self.features, empty, 1, length, self.pad_id), self.padded_rows)

    def padding(self) -> float:
        """Returns the fraction of the token slots that hold padding in the first epoch, or in its first 4,096 steps."""
        sizes = [self.size(step) for step in range(min(self.steps_per_epoch, _PADDING_STEPS))]
        return 1 - sum(size.tokens for size in sizes) / sum(size.token_slots for size in sizes)


def batches(
    features: Features,
    pad_id: int,
    *,
    batch_size: int = 32,
    epochs: int = 1,
    seed: int = 0,
    batching: Batching = "packed",
    row_length: int = 0,
    max_length: int | None = None,
    accumulate: int = 1,
    mesh: Mesh | None = None,
) -> TrainingBatches:
    """Returns the batches of a training by step: ``batches[i]``, or a loop over ``read_ahead(batches, first)``.

    A batch is a dict of numpy arrays: ``input_ids`` and ``token_type_ids`` int32 [B,T], ``labels`` as the features have
    them, and ``segment_ids`` int32 [B,T] and ``positions`` int32 [B,P] of packed rows, or ``attention_mask`` bool [B,T]
    of padded ones. ``model_inputs`` returns those that models take.

    Args:
      features: tokens and labels of all examples, such as ``data.make_features`` returns.
      pad_id: the token id of padding.
      batch_size: number of examples in a step, over all devices.
      epochs: number of passes over the examples.
      seed: of the order of the examples.
      batching: several examples in a row without attention between them (packed), or one example in a row, padded to
        one of four lengths (buckets).
      row_length: number of tokens of a packed row; 0 chooses it from the lengths of the examples.
      max_length: longest padded length; None: that of the longest example.
      accumulate: number of micro-batches, as of ``train_step``.
      mesh: its devices share a batch; None: the one of ``sharding.use``, or a single device.

    Raises:
      InputError: ``row_length`` is smaller than the longest example or much larger than all of them, or there are too
        many micro-batches or steps.
    """
    check_choice("batching", batching, get_args(Batching))
    for name, number in (("batch_size", batch_size), ("epochs", epochs), ("accumulate", accumulate)):
        if number < 1:
            raise InputError(f"{name}={number}: must be at least 1")
    mesh = current_mesh() if mesh is None else mesh
    parts = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    if accumulate > max(_MANY_PARTS, batch_size):
        raise InputError(f"--accumulate {accumulate}: there are {batch_size} examples in a batch")
    if batching == "packed" and row_length:
        longest, total = int(example_tokens(features).max()), int(features.lengths.sum())
        if row_length < longest:
            raise InputError(f"--row-length {row_length}: the longest example has {longest} tokens")
        if row_length > max(_LONG_ROW, total):
            raise InputError(f"--row-length {row_length}: all examples together have {total} tokens")
    lengths = example_lengths(features)
    return TrainingBatches(
        features,
        ExampleOrder(batch_size=batch_size, seed=seed, epochs=epochs),
        pad_id,
        buckets=length_buckets(lengths, max_length or -(-int(lengths.max()) // 8) * 8) if batching == "buckets" else (),
        row_length=row_length,
        multiple=parts * accumulate,
        share=WHOLE if mesh is None else row_share(mesh),
    )


def repeated(row: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Returns a batch of ``count`` times the same row [1, ...], as views that take no memory."""
    return {name: np.broadcast_to(array, (count, *array.shape[1:])) for name, array in row.items()}
