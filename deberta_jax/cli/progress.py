"""Progress bars of the commands."""

import jax
from tqdm import tqdm

from deberta_jax.progress import progress_bar


def text_bar(total: int) -> tqdm:
    """Returns a progress bar over texts; of several processes the first one shows it."""
    return progress_bar(total=total, unit="text", leave=False, disable=jax.process_index() != 0)
