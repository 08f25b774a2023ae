"""Reads files, or parts of them, and writes files atomically."""

import contextlib
import json
import mmap
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from deberta_jax.errors import InputError
from deberta_jax.storage.paths import AnyPath, as_path, check_file_kind, descriptor, is_remote, reaching


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yields a file opened for reading bytes. Raises OSError for a local file, InputError for a URL."""
    if is_remote(path):
        with reaching(path) as remote, remote.open("rb") as file:
            yield cast(BinaryIO, file)
        return
    with open(Path(path).expanduser(), "rb") as file:
        yield file


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Returns the bytes of a file. Raises OSError if it cannot be read."""
    with opened(path) as file:
        return file.read()


def read_range(path: str | os.PathLike[str], start: int, size: int) -> bytes:
    """Returns ``size`` bytes of a file from offset ``start``, or fewer at its end. Raises OSError."""
    with opened(path) as file:
        file.seek(start)
        return file.read(size)


def read_text(path: str | os.PathLike[str]) -> str:
    """Returns the text of a UTF-8 file. Raises OSError if it cannot be read, InputError if it is not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """Returns the value of a JSON file. Raises OSError if it cannot be read, ValueError if it is not JSON."""
    return json.loads(read_text(path))


def read_json_lines(path: str | os.PathLike[str]) -> list[Any]:
    """Returns the values of a JSON lines file, up to the first line that is not JSON.

    A killed process may leave an incomplete line. A file that does not exist gives an empty list.

    Raises:
      OSError: the file cannot be read.
    """
    values = []
    if as_path(path).is_file():
        for line in read_text(path).splitlines():
            try:
                values.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return values


def mapped_array(path: str | os.PathLike[str], dtype: np.dtype) -> np.ndarray:
    """Maps a file of numbers into memory as an array [number of items]. Raises OSError, ValueError."""
    return np.memmap(path, dtype, "r") if os.path.getsize(path) else np.empty(0, dtype)


def mapped_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Maps the array of a ``.npy`` file into memory. Raises OSError, ValueError, EOFError."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


@contextmanager
def mapped(path: str | os.PathLike[str]) -> Iterator[mmap.mmap]:
    """Yields the bytes of a local file, mapped into memory for reading. Raises OSError, ValueError."""
    with opened(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        yield view


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


def partial_name(name: str) -> str:
    """Returns the temporary name under which a file or directory is written before it is renamed."""
    return f".{name}.partial"


class StagedFile:
    """Writes a local file under a temporary name in the same directory until ``keep`` renames it.

    Raises:
      OSError: the path cannot be written.
    """

    def __init__(self, path: Path):
        self.target = Path(os.path.realpath(path))
        self.partial = self.target.with_name(partial_name(self.target.name))
        self.partial.unlink(missing_ok=True)  # left by a killed process; "xb" below then never follows a link
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
    """Writes a value as indented JSON, atomically. Raises as ``writing``."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_json_lines(path: str | os.PathLike[str], values: list[Any]) -> None:
    """Writes one JSON value per line, atomically. Raises as ``writing``."""
    write_text(path, "".join(json.dumps(value) + "\n" for value in values))


def append_json_line(path: str | os.PathLike[str], value: Any) -> None:
    """Appends a JSON value as one line to a local file. Raises OSError."""
    with open(path, "ab") as file:
        file.write(json.dumps(value).encode() + b"\n")


def make_directory(path: AnyPath) -> None:
    """Makes a directory and its parents if they do not exist. Raises OSError."""
    path.mkdir(parents=True, exist_ok=True)


def remove(path: AnyPath) -> None:
    """Removes a file, or a directory with its contents, if it exists. Raises OSError."""
    if path.is_dir() and not (isinstance(path, Path) and path.is_symlink()):
        shutil.rmtree(path) if isinstance(path, Path) else path.rmtree()
    else:
        path.unlink(missing_ok=True)
