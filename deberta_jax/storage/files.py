"""Reading a file, or a part of it; writing one whole, in one rename."""

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
from deberta_jax.storage.places import Place, check_file_kind, descriptor, is_remote, place_of, reaching


@contextmanager
def opened(place: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yields the bytes of a file as they are stored. Raises OSError where there are none; of a URL, InputError."""
    if is_remote(place):
        with reaching(place) as remote, remote.open("rb") as file:
            yield cast(BinaryIO, file)
        return
    with open(Path(place).expanduser(), "rb") as file:
        yield file


def read_bytes(place: str | os.PathLike[str]) -> bytes:
    """Returns the bytes of a file. Raises OSError where there are none to read."""
    with opened(place) as file:
        return file.read()


def read_range(place: str | os.PathLike[str], start: int, size: int) -> bytes:
    """Returns ``size`` bytes of a file from ``start`` on, or as many as there are. Raises OSError."""
    with opened(place) as file:
        file.seek(start)
        return file.read(size)


def read_text(place: str | os.PathLike[str]) -> str:
    """Returns a text of UTF-8. Raises OSError where there is none, and InputError for other bytes."""
    try:
        return read_bytes(place).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None


def read_json(place: str | os.PathLike[str]) -> Any:
    """Returns the value that a JSON file holds. Raises OSError where there is none, and ValueError for other text."""
    return json.loads(read_text(place))


def read_json_lines(place: str | os.PathLike[str]) -> list[Any]:
    """Returns the values of a file with a JSON value a line, up to the first line that a killed process cut short.

    A file that does not exist has no lines. Raises OSError for one that cannot be read.
    """
    values = []
    if place_of(place).is_file():
        for line in read_text(place).splitlines():
            try:
                values.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return values


def mapped_array(place: str | os.PathLike[str], dtype: np.dtype) -> np.ndarray:
    """Returns a file of numbers as an array [number of items] that the disk backs. Raises OSError, ValueError."""
    return np.memmap(place, dtype, "r") if os.path.getsize(place) else np.empty(0, dtype)


def mapped_npy(place: str | os.PathLike[str]) -> np.ndarray:
    """Returns the array of a ``.npy`` file, which the disk backs. Raises OSError, ValueError, EOFError."""
    return np.load(place, mmap_mode="r", allow_pickle=False)


@contextmanager
def mapped(place: str | os.PathLike[str]) -> Iterator[mmap.mmap]:
    """Yields the bytes of a local file, of which only those that are used are read. Raises OSError, ValueError."""
    with opened(place) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        yield view


@contextmanager
def writing(place: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yields a file that takes its name, in one rename, when the block ends well; otherwise nothing is left of it.

    A symbolic link stays one, and the file that it leads to is replaced. Pipes and character devices are written to.

    Raises:
      InputError: a directory or a block device.
      OSError: the place cannot be written.
    """
    if is_remote(place):
        with reaching(place) as remote, remote.open("wb") as file:
            yield cast(BinaryIO, file)
        return
    local = Path(place).expanduser()
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
        if error.filename is None:  # as when a disk is full: which one would remain unknown
            error.filename = str(place)
        raise


def partial_name(name: str) -> str:
    """Returns the name under which a file or directory is written before it gets its own."""
    return f".{name}.partial"


class StagedFile:
    """A local file that is written under another name beside its place until ``keep`` is called.

    Raises:
      OSError: the place cannot be written.
    """

    def __init__(self, place: Path):
        self.target = Path(os.path.realpath(place))
        self.partial = self.target.with_name(partial_name(self.target.name))
        self.partial.unlink(missing_ok=True)  # what a killed process left, and never what a link of that name leads to
        self.file: BinaryIO = open(self.partial, "xb")  # noqa: SIM115  # closed by keep and drop

    def keep(self) -> None:
        """Makes the disk keep what was written, then gives it its name, with the permissions of a file it replaces."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        if self.target.exists():
            shutil.copymode(self.target, self.partial)
        os.replace(self.partial, self.target)

    def drop(self) -> None:
        """Removes what was written, unless it was kept."""
        with contextlib.suppress(OSError):  # what its buffer still holds may not fit on the disk
            self.file.close()
        self.partial.unlink(missing_ok=True)


def _stream(place: Path) -> BinaryIO | None:
    """Opens what bytes pass through, such as a pipe, /dev/null or /dev/stdout; None for a file, or a name to be one."""
    number = descriptor(place)
    if number is not None:  # a new file of its own would begin at the start of what another program has written
        return os.fdopen(os.dup(number), "wb")
    try:
        mode = place.stat().st_mode
    except FileNotFoundError:
        return None
    check_file_kind(str(place), mode)
    if stat.S_ISREG(mode):
        return None
    return os.fdopen(os.open(place, os.O_WRONLY), "wb")


def write_bytes(place: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file whole. Raises as ``writing``."""
    with writing(place) as file:
        file.write(content)


def write_text(place: str | os.PathLike[str], text: str) -> None:
    """Writes a text as UTF-8, whole. Raises as ``writing``."""
    write_bytes(place, text.encode())


def write_json(place: str | os.PathLike[str], value: Any) -> None:
    """Writes a value as indented JSON, whole. Raises as ``writing``."""
    write_text(place, json.dumps(value, indent=2) + "\n")


def write_json_lines(place: str | os.PathLike[str], values: list[Any]) -> None:
    """Writes a JSON value a line, whole. Raises as ``writing``."""
    write_text(place, "".join(json.dumps(value) + "\n" for value in values))


def append_json_line(place: str | os.PathLike[str], value: Any) -> None:
    """Adds a JSON value as a line to the end of a local file. Raises OSError."""
    with open(place, "ab") as file:
        file.write(json.dumps(value).encode() + b"\n")


def make_directory(place: Place) -> None:
    """Makes a directory, and those above it, where there is none. Raises OSError."""
    place.mkdir(parents=True, exist_ok=True)


def remove(place: Place) -> None:
    """Removes a file, or a directory with all that is in it, if it is there. Raises OSError."""
    if place.is_dir() and not (isinstance(place, Path) and place.is_symlink()):
        shutil.rmtree(place) if isinstance(place, Path) else place.rmtree()
    else:
        place.unlink(missing_ok=True)
