"""Writes files atomically, makes directories, and removes either."""

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from deberta_jax.errors import InputError
from deberta_jax.storage.paths import AnyPath, check_file_kind, descriptor, file_system, is_remote, reaching

_RANDOM = 8
"""Number of random characters in a temporary name."""

_IN_MEMORY = 16 << 20
"""Larger objects are kept in a temporary file until they are uploaded."""

_UPLOAD_BLOCK = 8 << 20

_OLD_SECONDS = 3600
"""Age after which the temporary file of another process is taken for the rest of a killed one."""


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yields a file opened for writing bytes, which appears under its name when the block ends without an error.

    It is written under another name and renamed; after an error it is removed. A symbolic link is kept, and its target
    is replaced. Pipes and character devices are written directly. An object in a bucket is uploaded at the end.

    Raises:
      InputError: the path is a directory or a block device; an object cannot be written.
      RunAgainError: an object cannot be written now.
      OSError: the path cannot be written.
    """
    if is_remote(path):
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as spooled:  # after an error nothing is uploaded
            yield cast(BinaryIO, spooled)
            spooled.seek(0)
            upload(cast(BinaryIO, spooled), path)
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


def upload(file: BinaryIO, url: str | os.PathLike[str]) -> None:
    """Uploads the rest of an opened file. The object appears, or replaces the old one, when it is complete.

    Raises:
      InputError: the bucket does not exist, or a permission is missing.
      RunAgainError: the bucket cannot be reached now.
    """
    try:
        with reaching(url) as remote:
            target: Any = remote.open("wb")
            try:
                shutil.copyfileobj(file, target, _UPLOAD_BLOCK)
            except BaseException:
                with contextlib.suppress(Exception):
                    target.discard()  # closing would upload what is there
                raise
            target.close()
    except InputError as error:
        if str(error).endswith("there is nothing of that name"):  # an object needs no directory
            raise InputError(f"{url}: its bucket does not exist, or this account may not see it; make it") from None
        raise


def partial_pattern(name: str) -> str:
    """Returns the pattern of the temporary names under which a file or directory is written before it is renamed."""
    return f".{name}.partial-*"


def partials(directory: AnyPath, name: str) -> list[Path]:
    """Returns what killed processes have left of a file or directory in ``directory``; in a bucket nothing."""
    pattern = partial_pattern(name)
    if not isinstance(directory, Path):
        return []
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
    """Makes a directory and its parents if they do not exist; in a bucket there are none to make. Raises OSError."""
    if isinstance(path, Path):  # a client would make the bucket if it does not exist
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


def rename(path: AnyPath, new: AnyPath) -> None:
    """Renames a file or directory; a file of the new name is replaced. Raises OSError.

    In a bucket all objects are copied, and then removed: a process that is killed leaves both.
    """
    if isinstance(path, Path):
        path.rename(new)
        return
    with reaching(path):
        client, name = file_system(str(path))
        client.copy(name, file_system(str(new))[1], recursive=True)
        client.rm(name, recursive=True)


def remove(path: AnyPath) -> None:
    """Removes a file, or a directory and its contents, if it exists. Raises OSError, or for a bucket as ``writing``."""
    if not isinstance(path, Path):
        with reaching(path):
            path.rmtree(missing_ok=True) if path.is_dir() else path.unlink(missing_ok=True)
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
