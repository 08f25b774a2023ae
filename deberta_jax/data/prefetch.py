"""Computes the items of a source ahead of their use, in threads."""

import collections
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

# Two threads keep up with a device; more would take time from the threads that feed it.
_THREADS, _AHEAD = 2, 8


def read_ahead(source: Any, start: int = 0) -> Generator[Any, None, None]:
    """Yields ``source[start], source[start + 1], ...`` to the end, computed in advance by threads.

    An exception of the source is raised where its item would come. The threads end when the iterator does, and when it
    is closed or deleted.

    Args:
      source: has ``__len__`` and ``__getitem__``, which two threads may call at once.
      start: the number of the first item.
    """
    # The consumer alone submits and takes, so that no thread ever waits for room: a closed iterator leaves none behind.
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="read-ahead")
    waiting: collections.deque[Future[Any]] = collections.deque()
    try:
        for index in range(start, len(source)):
            waiting.append(pool.submit(source.__getitem__, index))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Without waiting: a garbage collection may delete the iterator in one of the threads itself.
        pool.shutdown(wait=False, cancel_futures=True)
