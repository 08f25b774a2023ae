"""Follows one request on its way through the event loop, a worker thread and the compute thread of its model."""

import contextlib
import contextvars
import dataclasses
import time
from collections.abc import Callable, Iterator

_current: contextvars.ContextVar["Call"] = contextvars.ContextVar("call")


@dataclasses.dataclass(eq=False)
class Call:
    """Holds the state of a request.

    Attributes:
      truncate: whether texts that are too long are cut, or refused.
      tokens: tokens of all its rows.
      queue_seconds: how long its rows waited in the queue.
      compute_seconds: how long they were computed.
      abandoned: nobody waits for the answer any more.
    """

    truncate: bool = False
    tokens: int = 0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    abandoned: bool = False
    started: float = dataclasses.field(default_factory=time.monotonic)
    _discard: Callable[[], None] | None = None

    def abandon(self) -> None:
        """Takes the rows of the request out of the queue, and ends the wait of its worker thread."""
        # The flag is set first: the worker sees it after it has announced how to discard its rows.
        self.abandoned = True
        discard = self._discard
        if discard is not None:
            discard()

    @contextlib.contextmanager
    def waiting(self, discard: Callable[[], None]) -> Iterator[None]:
        """Lets ``abandon`` call ``discard`` inside a ``with`` block."""
        self._discard = discard
        if self.abandoned:
            discard()
        try:
            yield
        finally:
            self._discard = None

    @contextlib.contextmanager
    def current(self) -> Iterator["Call"]:
        """Makes this the call of ``current_call`` inside a ``with`` block, in this thread."""
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)


def current_call() -> Call:
    """Returns the request that this thread works for; a fresh one outside of requests."""
    return _current.get(None) or Call()
