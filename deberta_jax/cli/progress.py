"""Progress bars of the commands, on standard error."""

import sys
from collections.abc import Callable

import jax
from tqdm import tqdm


def text_bar(total: int) -> tqdm:
    """Returns a progress bar over texts; of several processes the first one shows it."""
    return tqdm(total=total, unit="text", file=sys.stderr, leave=False, disable=jax.process_index() != 0)


def update_of(bar: tqdm) -> Callable[[int, int], None]:
    """Returns a function of (done, total) that moves the bar there."""

    def update(done: int, total: int) -> None:
        bar.total = total
        bar.update(max(0, done - bar.n))

    return update
