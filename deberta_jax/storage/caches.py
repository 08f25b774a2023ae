"""Keeps directories of derived data, with the digests of their files; damaged ones are removed and made again."""

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from deberta_jax.errors import InputError, brief
from deberta_jax.storage.checksums import CHECKSUMS, compare_checksums, read_checksums, write_checksums
from deberta_jax.storage.files import remove
from deberta_jax.storage.outputs import made_once
from deberta_jax.storage.paths import files_in

T = TypeVar("T")

_log = logging.getLogger(__name__)


class CacheEntry:
    """Names an entry of a cache: a directory that appears in one rename and lists the digests of its files.

    An entry that is damaged is removed and made again. One that cannot be removed, because another user owns it, is
    left, and this user has another one beside it.

    Args:
      path: the directory.
      unlisted: tells of a directory without digests whether an older version wrote it, which listed none. Such an entry
        is used, and its digests are listed then. By default there are none.
    """

    def __init__(self, path: Path, unlisted: Callable[[Path], bool] = lambda path: False):
        self.unlisted = unlisted
        user = os.getuid() if hasattr(os, "getuid") else 0
        self.places = [path, path.with_name(f"{path.name}.{user}")]

    def read(self, read: Callable[[Path, frozenset[str]], T]) -> T | None:
        """Returns what ``read`` makes of the entry; None if there is none that can be used.

        Every byte is compared with the digests. A warning is logged for an entry that is damaged, or that ``read``
        refuses.

        Args:
          read: (directory, names of its files) -> value. Any exception means that the entry cannot be used.
        """
        for path in list(self.places):
            if not os.path.lexists(path):
                continue
            try:
                return self._read_intact(path, read)
            except Exception as error:  # whatever the files hold
                _log.warning("%s: cannot be used (%s); it is made anew", brief(path, 300), brief(error, 300))
                if not isinstance(error, PermissionError):  # it may be intact, and another user's
                    with contextlib.suppress(OSError):
                        remove(path)
                if os.path.lexists(path):
                    self.places.remove(path)
        return None

    def _read_intact(self, path: Path, read: Callable[[Path, frozenset[str]], T]) -> T:
        if os.path.lexists(path / CHECKSUMS) or not self.unlisted(path):
            return read(path, _intact_files(path))
        value = read(path, frozenset(file.name for file in files_in(path)))
        with contextlib.suppress(OSError):  # of another user
            write_checksums(path)
        return value

    @contextmanager
    def making(self) -> Iterator[Path]:
        """Yields a temporary directory that becomes the entry when the block ends without an error.

        The digests of all files in it are added. If another process has made the entry meanwhile, that one is kept.

        Raises:
          OSError: the directory cannot be written.
        """
        if not self.places:
            raise PermissionError(errno.EACCES, "Permission denied")
        with made_once(self.places[0]) as stage:
            yield stage
            write_checksums(stage)


def _intact_files(directory: Path) -> frozenset[str]:
    """Returns the names of the files that an entry lists. Raises InputError if one is not as it was written."""
    entries = read_checksums(directory)
    if not entries:
        raise InputError(f"{CHECKSUMS} is missing or empty")
    compared = compare_checksums(directory, full=True, entries=entries)
    assert compared is not None
    if compared.differences:
        raise InputError(compared.differences[0].text())
    return frozenset(entries)
