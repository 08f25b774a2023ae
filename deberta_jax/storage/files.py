"""Writes files atomically, makes directories, and removes either."""

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from deberta_jax.storage.paths import AnyPath, check_file_kind, descriptor, is_remote, reaching

_RANDOM = 8
"""Number of random characters in a temporary name."""

_OLD_SECONDS = 3600
"""Age after which the temporary file of another process is taken for the rest of a killed one."""


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yields a file opened for writing bytes, which appears under its name when the block ends without an error.

    It is written under another name and renamed; after an error it is removed. A symbolic link is kept, and its target
    is replaced. Pipes and character devices are written directly.

    Raises:
      InputError: the path is a directory or a block device.
      OSError: the path cannot be written.
    """
    if is_remote(path):
        with reaching(path) as remote, remote.open("wb") as file:
            yield cast(BinaryIO, file)
        return
    local = Path(path).expanduser()
    try:
        stream = _stream(local)
        if stream is not None:
            with stream:
                yield stream
            return
        staged_file = StagedFile(local)
        try:
            yield staged_file.file
            staged_file.keep()
        finally:
            staged_file.drop()
    except OSError as error:
        if error.filename is None:  # such as for a full disk; the message must name the file
            error.filename = str(path)
        raise


def partial_pattern(name: str) -> str:
    """Returns the pattern of the temporary names under which a file or directory is written before it is renamed."""
    return f".{name}.partial-*"


def partials(directory: Path, name: str) -> list[Path]:
    """Returns what processes that were killed have left of a file or directory in ``directory``."""
    pattern = partial_pattern(name)
    return [path for path in directory.iterdir() if _is_partial(path.name, pattern)] if directory.is_dir() else []


def _is_partial(name: str, pattern: str) -> bool:
    begin = pattern.removesuffix("*")
    return name.startswith(begin) and len(name) == len(begin) + _RANDOM


class StagedFile:
    """Writes a local file under a temporary name in the same directory until ``keep`` renames it.

    The temporary name cannot be guessed and is created exclusively. So in a directory that others can write too, a link
    or a file that somebody has put there is never followed or written.

    Raises:
      OSError: the path cannot be written.
    """

    def __init__(self, path: Path):
        self.target = Path(os.path.realpath(path))
        _remove_old_partials(self.target)
        self.partial = self.target.with_name(temporary_name(self.target.name))
        self.file: BinaryIO = open(self.partial, "xb")  # noqa: SIM115  # closed by keep and drop

    def keep(self) -> None:
        """Flushes the file to disk and renames it. It takes the permissions of a file that it replaces."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        if self.target.exists():
            shutil.copymode(self.target, self.partial)
        os.replace(self.partial, self.target)

    def drop(self) -> None:
        """Removes the temporary file, unless ``keep`` has renamed it."""
        with contextlib.suppress(OSError):  # closing flushes the buffer, which may not fit on the disk
            self.file.close()
        self.partial.unlink(missing_ok=True)


def temporary_name(name: str) -> str:
    """Returns a new name for what is written before it is renamed to ``name``. It cannot be guessed."""
    return partial_pattern(name).replace("*", secrets.token_hex(_RANDOM // 2))


def _remove_old_partials(target: Path) -> None:
    """Removes what killed processes have left of a file. Another process may be writing the recent ones."""
    limit = time.time() - _OLD_SECONDS
    with contextlib.suppress(OSError):  # of another user, or removed meanwhile
        for path in partials(target.parent, target.name):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_mtime < limit:
                path.unlink()


def _stream(path: Path) -> BinaryIO | None:
    """Opens a pipe or device such as /dev/null or /dev/stdout; returns None for a regular or missing file."""
    number = descriptor(path)
    if number is not None:  # opening the path anew would start at offset 0 and overwrite earlier output
        return os.fdopen(os.dup(number), "wb")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    check_file_kind(str(path), mode)
    if stat.S_ISREG(mode):
        return None
    return os.fdopen(os.open(path, os.O_WRONLY), "wb")


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file atomically. Raises as ``writing``."""
    with writing(path) as file:
        file.write(content)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text as UTF-8, atomically. Raises as ``writing``."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a value as indented JSON, atomically. Raises as ``writing``, or ValueError for NaN."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_json_lines(path: str | os.PathLike[str], values: list[Any]) -> None:
    """Writes one JSON value per line, atomically. Raises as ``writing``, or ValueError for NaN."""
    write_text(path, "".join(json.dumps(value, allow_nan=False) + "\n" for value in values))


def append_json_line(path: str | os.PathLike[str], value: Any) -> None:
    """Appends a JSON value as one line to a local file. A last line that was cut short is ended. Raises OSError."""
    with open(path, "a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(value, allow_nan=False).encode() + b"\n")


def make_directory(path: AnyPath) -> None:
    """Makes a directory and its parents if they do not exist. Raises OSError."""
    path.mkdir(parents=True, exist_ok=True)


def make_private_directory(path: Path) -> None:
    """Makes a directory that its owner alone can write to, and its parents.

    Raises:
      OSError: it cannot be made, another user owns it, or others may write to it.
    """
    make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.stat()
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        raise PermissionError(errno.EPERM, "other users may write to it", str(path))


def rename(path: Path, new: Path) -> None:
    """Renames a local file or directory; a file of the new name is replaced. Raises OSError."""
    path.rename(new)


def remove(path: AnyPath) -> None:
    """Removes a file, or a directory with its contents, if it exists. Raises OSError."""
    if path.is_dir() and not (isinstance(path, Path) and path.is_symlink()):
        shutil.rmtree(path) if isinstance(path, Path) else path.rmtree()
    else:
        path.unlink(missing_ok=True)
