"""Progress bars of the commands."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from tqdm import tqdm

from deberta_jax.data.streaming import estimated_rows
from deberta_jax.inference.prediction import Share
from deberta_jax.progress import progress_bar


def text_bar(total: int) -> tqdm:
    """Returns a progress bar over texts; of several processes the first one shows it."""
    return progress_bar(total=total, unit="text", leave=False, disable=jax.process_index() != 0)


@contextmanager
def prediction_bar(pattern: str, share: Share) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of numbers of texts and tokens that moves a bar over the texts of files.

    The bar has an estimate of the time that is left, where the number of texts can be estimated. Of several processes
    the first one shows its own part.

    Args:
      pattern: the files.
      share: the part of this process.
    """
    rows = estimated_rows(pattern) if share.process == 0 else None
    total = None if rows is None else rows // share.processes
    begin, tokens = 0.0, 0
    with progress_bar(total=total, unit="text", leave=False, disable=share.process != 0) as bar:

        def told(texts: int, more_tokens: int) -> None:
            nonlocal begin, tokens
            if begin:  # the first batch includes compilation
                tokens += more_tokens
                bar.set_postfix_str(f"{tokens / (time.monotonic() - begin):,.0f} tokens/s", refresh=False)
            begin = begin or time.monotonic()
            bar.update(texts)

        yield told
