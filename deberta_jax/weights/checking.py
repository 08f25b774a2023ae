"""Compares the files of a model directory with the digests that were listed when it was written.

Other programs write into model directories too: transformers saves other weights under the same names, a user edits
config.json. The list is stale then, which is logged and harms nothing. A damaged file must be refused. What tells them
apart is how much of a file differs, because modification times say little: a copy, a download or a git checkout has
others. A file was **rewritten** if its size is another one, or if at least half of its blocks differ; damage flips some
bits, cuts the file short or leaves zeros, and changes neither its size nor most of its blocks.

A **full** check compares every byte. All that differs must be rewritten, or else the model is refused, so a flipped bit
is never missed. One exception: where some file was rewritten, others that were modified after the list are taken for
rewritten as well, because a program that saves a model whose encoder is frozen changes few blocks of the weights.

A **sampled** check, the default, compares small files, some blocks of large ones, and all sizes. It refuses what is
damaged without doubt: a file that is cut short or has blocks of zeros, or one with other bytes but the size and
modification time that were listed. Anything else that differs is logged.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

from deberta_jax import storage
from deberta_jax.errors import InputError, check_choice, listed
from deberta_jax.storage import CHECKSUMS, AnyPath, Difference, FileEntry
from deberta_jax.weights.readers import has_standard

Check = Literal["sampled", "full"]
"""How thoroughly files are compared with the list of their digests."""

_log = logging.getLogger(__name__)


class Checked(NamedTuple):
    """Holds what a check has found in a directory without damage.

    Attributes:
      text: a line that says what was compared, and with what result.
      files: absolute paths of the files that were compared.
      stale: whether another program has changed files since the list was written.
    """

    text: str
    files: frozenset[AnyPath] = frozenset()
    stale: bool = False


def check_files(directory: AnyPath, check: Check, names: Iterable[str] | None = None) -> Checked:
    """Compares the files of a directory with its list.

    Args:
      directory: a directory of a model, or the directory of a step of a training state.
      check: how thoroughly. Files in a bucket are compared only by a full check.
      names: the files to compare, relative to the directory; None: all.

    Returns:
      What was found. A stale list is logged.

    Raises:
      InputError: a file is damaged, or the list is and the check is a full one.
    """
    check_choice("check", check, get_args(Check))
    full = check == "full"
    if storage.is_remote(directory) and not full:
        return Checked(f"{directory}: is in a bucket; only a full check compares its files with {CHECKSUMS}")
    try:
        entries = storage.read_checksums(directory)
    except InputError as error:
        if full:
            raise
        _log.warning("%s", error)
        return Checked(str(error))
    if entries is not None and names is not None:
        entries = {name: entry for name, entry in entries.items() if name in set(names)}
    if not entries:
        return Checked(f"{directory}: has no {CHECKSUMS} to compare its files with")
    return _result(directory, entries, full)


def find_incomplete(directory: AnyPath) -> str | None:
    """Returns what a model directory lacks, as a phrase that names the file; None if it can be loaded.

    Missing files, and those that are cut short, are found. Other damage is found when the model is loaded.
    """
    if not directory.is_dir():
        return f"{directory} is missing"
    try:
        compared = storage.compare_checksums(directory, full=False)
    except InputError:
        compared = None  # a damaged list harms no model
    if compared is not None:
        lacking = [d.text() for d in compared.differences if d.kind == "missing" or _cut(d)]
        return f"{directory}: {lacking[0]}" if lacking else None
    if not (directory / "config.json").is_file():
        return f"{directory}: config.json is missing"
    return None if has_standard(directory) else f"{directory}: it has no weights"


def _result(directory: AnyPath, entries: dict[str, FileEntry], full: bool) -> Checked:
    found = storage.compare_checksums(directory, full=full, entries=entries)
    assert found is not None
    damaged = _damaged(found.differences, full)
    if damaged:
        raise InputError(
            f"{directory}: damaged: {_text(damaged)}, compared with {CHECKSUMS}; copy or make the directory again. If "
            f"another program changed it on purpose, delete {directory / CHECKSUMS}"
        )
    if found.differences:
        line = (
            f"{directory / CHECKSUMS}: is not used, another program has changed files since: {_text(found.differences)}"
        )
        _log.warning("%s", line)
        return Checked(line, stale=True)
    what = "every byte" if full else "a sample of the bytes"
    text = f"{directory}: {what} of {found.files} files ({found.size:,} bytes) is as it was written"
    return Checked(text, frozenset(storage.absolute(directory) / name for name in entries))


def _damaged(differences: Sequence[Difference], full: bool) -> list[Difference]:
    """Returns the differences that are damage, by the rule that this module describes."""
    if not full:
        return [d for d in differences if d.same_time or _cut(d) or (d.zeros and d.kind == "bytes")]
    rewritten = [d for d in differences if _rewritten(d)]
    others = [d for d in differences if not _rewritten(d)]
    saved_again = lambda d: d.kind == "missing" or (d.newer and not _cut(d) and not d.zeros)
    return [] if rewritten and all(map(saved_again, others)) else others


def _rewritten(d: Difference) -> bool:
    if d.kind == "size":
        return not _cut(d)
    return d.kind == "bytes" and not d.zeros and 2 * d.differing >= d.compared


def _cut(d: Difference) -> bool:
    # Removing the last key of a JSON file by hand looks the same; a JSON file that is cut short is not valid.
    return d.cut and not d.name.endswith(".json")


def _text(differences: Sequence[Difference]) -> str:
    return listed((d.text() for d in differences), 5)
