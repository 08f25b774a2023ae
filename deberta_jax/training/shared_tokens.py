"""Divides the tokenisation of a table between the processes of a run, which need no common disk."""

import collections
import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from deberta_jax import storage
from deberta_jax.data.cache import TokenCache
from deberta_jax.data.feature_parts import ARRAYS, NOT_ARRAYS, join_features
from deberta_jax.data.features import Features
from deberta_jax.errors import InputError, RunAgainError
from deberta_jax.progress import progress_bar
from deberta_jax.training.distributed import any_process, exchange, is_writer, wait_for_all

_LARGEST_BLOCK, _SMALLEST_BLOCK = 16 << 20, 64 << 10
_MESSAGE = 1000


def shared_features(cache: TokenCache, count: int, make: Callable[[int], Features], *, leads: bool) -> Features:
    """Returns the features of a table, from the cache if all processes have them there. All must call.

    Otherwise each process makes its share of the parts, and sends them to the others. Each writes all of them into its
    own cache; of processes that share a disk one does.

    Args:
      cache: where this process keeps them.
      count: number of parts of the table.
      make: computes the features of a part, given its number.
      leads: whether this process writes for those that share its disk; see ``leads_on_disk``.

    Raises:
      InputError: in every process, that of the first row that cannot be used.
    """
    found, on_disk = cache.read(), cache.directory is not None
    while any_process(found is None):
        parts = _shown(exchanged_parts(count, make), count)
        if found is None and not on_disk:
            found = join_features(parts)
        elif found is None and leads:
            cache.write(lambda parts=parts: parts)
        if jax.process_count() > 1:  # the others need the parts of a process that cannot keep them
            collections.deque(parts, maxlen=0)
        wait_for_all("tokens are written")
        if found is None:
            found, on_disk = cache.read(), False  # what cannot be kept is made once more, in memory
    assert found is not None
    return found


def _shown(parts: Iterator[Features], count: int) -> Iterator[Features]:
    """Yields the parts, and shows the progress of one process."""
    with progress_bar(total=count, desc="tokenizing", leave=False, disable=count == 1 or not is_writer()) as bar:
        for part in parts:
            yield part
            bar.update(1)


def exchanged_parts(count: int, make: Callable[[int], Features]) -> Iterator[Features]:
    """Yields the features of all parts in order, of which this process makes every ``process_count``-th.

    All processes must take all parts.

    Args:
      count: number of parts.
      make: computes the features of a part, given its number.

    Raises:
      InputError: in every process, that of the first part for which ``make`` raised one.
    """
    processes, here = jax.process_count(), jax.process_index()
    for first in range(0, count, processes):
        mine, refused = None, ""
        if first + here < count:
            try:
                mine = make(first + here)
            except InputError as error:
                if processes == 1:
                    raise
                refused = str(error)[:_MESSAGE]
        if processes == 1:
            assert mine is not None
            yield mine
            continue
        reports = exchange({"refused": refused, "header": None if mine is None else _header(mine)})
        for report in reports:
            if report["refused"]:
                raise InputError(report["refused"])
        for sender, report in enumerate(reports[: count - first]):
            yield _sent(report["header"], mine if sender == here else None)


def _header(features: Features) -> dict[str, Any]:
    """Returns what the receivers need to know of features, as JSON."""
    arrays = {name: getattr(features, name) for name in ARRAYS}
    described = {name: [a.dtype.str, a.shape] for name, a in arrays.items() if a is not None}
    return {"arrays": described, "rest": {name: getattr(features, name) for name in NOT_ARRAYS}}


def _sent(header: dict[str, Any], mine: Features | None) -> Features:
    """Returns the features of the process that has them. All must call; ``mine`` is None in the others."""
    arrays: dict[str, np.ndarray] = {}
    for name, (dtype, shape) in header["arrays"].items():
        array = np.empty(shape, np.dtype(dtype)) if mine is None else np.ascontiguousarray(getattr(mine, name))
        _broadcast(array.reshape(-1).view(np.uint8), source=mine is not None)
        arrays[name] = array
    return Features(**arrays, **header["rest"])


def _broadcast(content: np.ndarray, *, source: bool) -> None:
    """Copies bytes from the one process that is the source into the arrays of the others, block by block."""
    for start in range(0, len(content), _LARGEST_BLOCK):
        block = content[start : start + _LARGEST_BLOCK]
        # Every size is one compiled program, so they are powers of two.
        size = max(_SMALLEST_BLOCK, 1 << (len(block) - 1).bit_length())
        room = np.zeros(size, np.uint8)
        if source:
            room[: len(block)] = block
        received = multihost_utils.broadcast_one_to_all(room, is_source=source)
        if not source:
            block[:] = received[: len(block)]


def leads_on_disk(directory: Path | None) -> bool:
    """Returns whether no process with a lower number sees the files of this one in ``directory``. All must call.

    Each writes a file there and looks for those of the others.

    Args:
      directory: a directory that the processes may share; None: this process has none.
    """
    processes, here = jax.process_count(), jax.process_index()
    if processes == 1:
        return True
    token = exchange({"token": secrets.token_hex(8)})[0]["token"]
    name = lambda process: f".{token}-{process}"
    with contextlib.ExitStack() as stack:
        if directory is not None:
            with contextlib.suppress(OSError, InputError, RunAgainError):  # who cannot write finds no file of its own
                stack.enter_context(storage.trial_file("", str(directory), name(here)))
        wait_for_all("trial files are written")
        seen = [] if directory is None else [p for p in range(here) if storage.sees_trial_file(str(directory), name(p))]
        wait_for_all("trial files are seen")
    return not seen


def leaders_first(leads: bool, read: Callable[[], Any]) -> Any:
    """Calls ``read`` in the processes that lead, and then in the others, which find what those have kept.

    All must call. Raises as ``read``, in every process.
    """
    value, refused = None, None
    if leads:
        try:
            value = read()
        except InputError as error:
            refused = error
    wait_for_all("tables are kept")
    if refused is not None:
        raise refused
    return value if leads else read()
