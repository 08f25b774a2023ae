"""Computes the rows of all requests together: one queue and one thread for each model, and shapes compiled ahead."""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from deberta_jax.data.features import EXAMPLE, Features
from deberta_jax.data.text_batches import TextBatch, pad_texts, padded_length, plan_in_order, sizes_within
from deberta_jax.errors import InputError
from deberta_jax.inference.predict import Predictor, Progress, gather, one_behind
from deberta_jax.serving.calls import Call, current_call
from deberta_jax.serving.errors import Abandoned, backend, log_failure, not_ready, overloaded, too_large
from deberta_jax.serving.metrics import ModelMetrics
from deberta_jax.sharding import global_batch

_NOTHING = Features(ids=np.empty(0, np.int32), types=np.empty(0, np.int8), starts=np.zeros(1, np.int64))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """Holds how rows are joined to batches.

    Attributes:
      batch_tokens: token slots of a batch, and tokens that are taken from the queue together.
      wait: seconds that the first row in the queue waits for others.
      queue_tokens: tokens in the queue, beyond which requests are refused.
      request_tokens: tokens of a request.
    """

    batch_tokens: int = 4096
    wait: float = 0.002
    queue_tokens: int = 262_144
    request_tokens: int = 65_536


class Program(NamedTuple):
    """Describes what is computed for a batch.

    Attributes:
      forward: a compiled function of the parameters and the arrays of a batch [B, ...]; returns arrays [B, ...].
      params: the parameters.
      per_token: the results have a second axis of tokens.
      extras: further arrays of a batch by name: the shape of a row, and the value that fills rows without a text.
    """

    forward: Callable[[Any, dict[str, jax.Array]], Any]
    params: Any
    per_token: bool = False
    extras: Mapping[str, tuple[tuple[int, ...], int]] = {}


class Submission:
    """Holds the rows that a request waits for, and their results."""

    def __init__(self, features: Features, extras: Mapping[str, np.ndarray]):
        self.features, self.extras = features, extras
        self.lengths: list[int] = features.lengths.tolist()
        self.parts: list[Any] = [None] * len(self.lengths)
        self.next, self._left = 0, len(self.lengths)
        self.arrived, self.taken, self.finished = time.monotonic(), 0.0, 0.0
        self.done = threading.Event()
        self.error: Exception | None = None

    @property
    def waiting_tokens(self) -> int:
        """Returns the number of tokens that have not been taken from the queue."""
        return sum(self.lengths[self.next :])

    def put(self, row: int, results: tuple[np.ndarray, ...]) -> None:
        """Stores the results of a row. Only the compute thread calls it."""
        self.parts[row] = results
        self._left -= 1
        if not self._left:
            self.finished = time.monotonic()
            self.done.set()

    def fail(self, error: Exception) -> None:
        """Ends the wait with an error, unless it has ended."""
        if not self.done.is_set():
            self.error = error
            self.done.set()


class Batcher:
    """Joins the rows of all requests, in the order of their arrival, into batches of compiled shapes.

    One thread computes. It takes rows from the queue until they have ``batch_tokens`` tokens or the first one has
    waited long enough, and divides them into the batches with the least padding. Results go to the request that sent
    the row.

    Args:
      program: what is computed.
      predictor: gives the devices, the padding token, the longest row and the sizes of batches.
      limits: how rows are joined.
      metrics: counts rows, tokens and batches.
    """

    def __init__(self, program: Program, predictor: Predictor, limits: BatchLimits, metrics: ModelMetrics):
        self._program, self._limits, self._metrics = program, limits, metrics
        self._mesh: Mesh = predictor.mesh
        self._pad_id, self.max_length = predictor.pad_id, predictor.max_length
        self._sizes = predictor.sizes(predictor.rows)
        self._queue: collections.deque[Submission] = collections.deque()
        self._queued = 0
        self._closed = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="deberta-jax-compute", daemon=True)
        metrics.watch_queue(lambda: self._queued)

    def start(self) -> None:
        """Starts the compute thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends the compute thread. Requests that still wait get an error."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Returns whether the compute thread runs."""
        return self._thread.is_alive()

    def shapes(self) -> list[tuple[int, int]]:
        """Returns the rows and padded lengths of all batches that can occur."""
        lengths = sorted({padded_length(length, self.max_length) for length in range(1, self.max_length + 1)})
        return [(size, length) for length in lengths for size in self._within(length)]

    def warm_up(self) -> Iterator[tuple[int, int]]:
        """Compiles the program for all shapes. Yields each before it is compiled."""
        for rows, length in self.shapes():
            yield rows, length
            with jax.set_mesh(self._mesh):
                nothing = TextBatch(np.empty(0, np.int64), rows, length)
                jax.tree.map(gather, self._forward(_NOTHING, [], nothing))

    def submit(self, features: Features, extras: Mapping[str, np.ndarray] | None = None) -> tuple[np.ndarray, ...]:
        """Waits until rows are computed, and returns the results.

        Args:
          features: the tokens of the rows.
          extras: the arrays [n, ...] that the program names.

        Returns:
          Float32 or int32 arrays [n, ...]; of a program with results of tokens [N, ...].

        Raises:
          ServingError: a row or the request is too long, the queue is full, the server stops, the computation failed,
            or a result is not finite.
          Abandoned: nobody waits for the request any more.
        """
        call = current_call()
        self._check(features, call)
        submission = Submission(features, extras or {})
        self._enter(submission)
        with call.waiting(lambda: self._discard(submission)):
            submission.done.wait()
        if submission.error is not None:
            raise submission.error
        call.queue_seconds += submission.taken - submission.arrived
        call.compute_seconds += submission.finished - submission.taken
        self._metrics.queue_seconds.observe(submission.taken - submission.arrived)
        self._metrics.compute_seconds.observe(submission.finished - submission.taken)
        return self._joined(submission)

    def check_lengths(self, features: Features) -> None:
        """Raises ServingError if a text is too long, or was cut although its request does not allow it."""
        longest = int(features.lengths.max())
        cut = features.cut and features.level == EXAMPLE and not current_call().truncate
        if cut or longest > self.max_length:
            more = "" if longest <= self.max_length else f", and one has {longest}"
            raise too_large(f"a text may have {self.max_length} tokens{more}; shorten it, or give 'truncate': true")

    def _check(self, features: Features, call: Call) -> None:
        self.check_lengths(features)
        call.tokens += int(features.lengths.sum())
        if call.tokens > self._limits.request_tokens:
            raise too_large(
                f"the request has more than {self._limits.request_tokens} tokens; divide it into several requests"
            )

    def _enter(self, submission: Submission) -> None:
        with self._condition:
            if self._closed:
                raise not_ready("the server stops")
            tokens = submission.waiting_tokens
            if self._queue and self._queued + tokens > self._limits.queue_tokens:
                raise overloaded(f"the queue holds {self._queued} tokens; send the request again later")
            self._queue.append(submission)
            self._queued += tokens
            self._condition.notify()

    def _discard(self, submission: Submission) -> None:
        with self._condition:
            if submission in self._queue:
                self._queue.remove(submission)
                self._queued -= submission.waiting_tokens
        submission.fail(Abandoned())

    def _joined(self, submission: Submission) -> tuple[np.ndarray, ...]:
        join = np.concatenate if self._program.per_token else np.stack
        results = tuple(join(arrays) for arrays in zip(*submission.parts, strict=True))
        if not all(np.isfinite(array).all() for array in results):
            raise backend("the model's scores are NaN or infinite; check the weights with `deberta-jax inspect`")
        return results

    def _within(self, length: int) -> Sequence[int]:
        return sizes_within(self._sizes, length, self._limits.batch_tokens)

    def _run(self) -> None:
        with jax.set_mesh(self._mesh):
            while (window := self._take()) is not None:
                try:
                    self._compute(window)
                except Exception as error:
                    log_failure("a batch failed", error)
                    for submission, _ in window:
                        submission.fail(backend("the computation failed; the server's log has the place"))
        for submission in self._queue:
            submission.fail(not_ready("the server stops"))

    def _take(self) -> list[tuple[Submission, int]] | None:
        """Returns the next rows to compute: at least one, of at most ``batch_tokens`` tokens. None at the end."""
        with self._condition:
            while True:
                if self._closed:
                    return None
                if not self._queue:
                    self._condition.wait()
                    continue
                left = self._queue[0].arrived + self._limits.wait - time.monotonic()
                if left <= 0 or self._queued >= self._limits.batch_tokens:
                    return self._window()
                self._condition.wait(left)

    def _window(self) -> list[tuple[Submission, int]]:
        rows: list[tuple[Submission, int]] = []
        tokens, now = 0, time.monotonic()
        while self._queue:
            first = self._queue[0]
            if not first.next:
                first.taken = now
            while first.next < len(first.lengths):
                length = first.lengths[first.next]
                if rows and tokens + length > self._limits.batch_tokens:
                    return rows
                rows.append((first, first.next))
                first.next += 1
                tokens += length
                self._queued -= length
            self._queue.popleft()
        return rows

    def _compute(self, window: list[tuple[Submission, int]]) -> None:
        features = _joined_features(window)
        batches = plan_in_order(features.lengths, self._sizes, self.max_length, self._limits.batch_tokens)
        self._metrics.batched(features.lengths, batches)
        sent = ((batch, self._forward(features, window, batch)) for batch in batches)
        for batch, arrays in one_behind(sent):
            results = [np.asarray(gather(array)) for array in jax.tree.leaves(arrays)]
            for slot, member in enumerate(batch.members.tolist()):
                submission, row = window[member]
                end = submission.lengths[row] if self._program.per_token else None
                submission.put(row, tuple(_own(array[slot][:end] if end else array[slot]) for array in results))

    def _forward(self, features: Features, window: Sequence[tuple[Submission, int]], batch: TextBatch) -> Any:
        arrays = pad_texts(features, batch.members, batch.rows, batch.length, self._pad_id)
        for name, (shape, fill) in self._program.extras.items():
            arrays[name] = np.full((batch.rows, *shape), fill, np.int32)
            for slot, member in enumerate(batch.members.tolist()):
                submission, row = window[member]
                arrays[name][slot] = submission.extras[name][row]
        return self._program.forward(self._program.params, global_batch(arrays, self._mesh))


def _own(array: np.ndarray) -> np.ndarray:
    """Returns a copy, so that a client's results do not keep those of the whole batch in memory."""
    return np.array(array, np.int32 if array.dtype == np.int32 else np.float32)


def _joined_features(window: Sequence[tuple[Submission, int]]) -> Features:
    """Returns the tokens of rows of several requests as those of one."""
    ids, types, lengths = [], [], []
    for submission, row in window:
        start, end = submission.features.starts[row], submission.features.starts[row + 1]
        ids.append(submission.features.ids[start:end])
        types.append(submission.features.types[start:end])
        lengths.append(submission.lengths[row])
    return Features(
        ids=np.concatenate(ids), types=np.concatenate(types), starts=np.concatenate([[0], np.cumsum(lengths)])
    )


class BatchingPredictor(Predictor):
    """Is a ``Predictor`` whose rows are computed with those of other requests.

    Args:
      predictor: gives the model, the devices and the longest row.
      batcher: computes.
    """

    def __init__(self, predictor: Predictor, batcher: Batcher):
        self.__dict__.update(predictor.__dict__)
        self.batcher = batcher

    def logits(self, params: Any, features: Features, progress: Progress | None = None) -> np.ndarray:
        """Returns the logits of all texts as ``Predictor.logits``; the parameters are those of the batcher."""
        (logits,) = self.batcher.submit(features)
        return logits

    def resized(self, batch_size: int) -> "BatchingPredictor":
        """Returns itself: the server chooses the sizes of batches.

        Raises:
          InputError: ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}: must be at least 1")
        return self
