"""Shows the progress of long work on standard error: as a bar, as lines, in a notebook, or not at all."""

import importlib.util
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from deberta_jax.errors import InputError, brief

MODES = ("auto", "bar", "lines", "none")
SETTING = "DEBERTA_JAX_PROGRESS"

_SECONDS = 10.0
"""Time between two lines."""


def progress_bar(**options: Any) -> tqdm:
    """Returns a progress bar in the form that the setting ``DEBERTA_JAX_PROGRESS`` or ``--progress`` asks for.

    ``bar`` redraws one line; ``lines`` writes a line every ten seconds, without carriage returns; ``none`` shows
    nothing. ``auto``, the default, is a bar in a terminal and in a notebook, and lines elsewhere, such as in a log.

    Args:
      options: the arguments of ``tqdm``.

    Raises:
      InputError: the setting is none of these.
    """
    mode = os.environ.get(SETTING, "") or "auto"
    _check(SETTING, mode)
    if mode == "none":
        options["disable"] = True
    if mode in ("auto", "bar") and _in_notebook():
        from tqdm.notebook import tqdm as notebook_bar

        return notebook_bar(**options)
    terminal = sys.stderr is not None and sys.stderr.isatty()
    bar = tqdm if mode == "bar" or (mode == "auto" and terminal) else _Lines
    return bar(file=sys.stderr, **options)


@contextmanager
def quiet() -> Iterator[None]:
    """Logs only warnings of the package in the block, such as while work is repeated whose messages are known."""
    log = logging.getLogger("deberta_jax")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def take_progress_option(argv: Sequence[str]) -> list[str]:
    """Applies ``--progress MODE`` of a command line, and returns the other arguments. Raises InputError."""
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        option, equals, mode = word.partition("=")
        if option != "--progress":
            rest.append(word)
            continue
        mode = mode if equals else next(words, "")
        _check("--progress", mode)
        os.environ[SETTING] = mode  # processes that this one starts show the same
    return rest


def _check(name: str, mode: str) -> None:
    if mode not in MODES:
        raise InputError(f"{name} {brief(mode)!r}: expected one of {', '.join(MODES)}")


def update_of(bar: tqdm) -> Callable[[int, int], None]:
    """Returns a function of (done, total) that moves the bar there."""

    def update(done: int, total: int) -> None:
        bar.total = total
        bar.update(max(0, done - bar.n))

    return update


def _in_notebook() -> bool:
    """Returns whether a notebook shows the output, with the widgets that a bar there needs."""
    if "ipykernel" not in sys.modules or importlib.util.find_spec("ipywidgets") is None:
        return False
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


class _Lines(tqdm):
    """Writes whole lines at intervals, and a last one if there were others."""

    def __init__(self, **options: Any):
        self.shown = time.monotonic()
        self.count = 0
        self.written = -1.0
        super().__init__(**options, ascii=True, ncols=0)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Writes a line if the last one is old enough."""
        if msg is None and time.monotonic() - self.shown >= _SECONDS:
            self.write_line()

    def write_line(self) -> None:
        """Writes a line."""
        self.shown = time.monotonic()
        self.count += 1
        self.written = self.n
        print(str(self).strip(), file=self.fp, flush=True)

    def clear(self, nolock: bool = False) -> None:
        """Does nothing: what is written stays."""

    def close(self) -> None:
        """Writes where the work stopped, if other lines were written."""
        if not self.disable and self.count and self.written != self.n:
            self.write_line()
        self.disable = True
