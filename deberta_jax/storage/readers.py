"""Reads files that other programs or other people may have written: never more than expected, never for ever.

A file is opened only if it is a regular one: opening a pipe would wait for a writer, and a device may have no end. Its
size is compared with a limit before it is read, so a sparse file of 100 GB costs nothing. What it holds is checked for
its encoding, and JSON for its depth and its numbers, because printing, copying or comparing a value that is nested very
deeply or an integer of a million digits takes for ever or fails in odd ways.
"""

import json
import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from deberta_jax.errors import InputError, brief, shown
from deberta_jax.storage.paths import descriptor, explain, is_remote, reaching

SMALL = 8 << 20
"""Largest size in bytes of a config, an index of weights, or a record of a run."""

LARGE = 64 << 20
"""Largest size in bytes of a tokenizer's file. That of a vocabulary of 250,000 pieces has 17 MB."""

LOG = 512 << 20
"""Largest size in bytes of the log of a run."""

_DEEPEST = 64
_MOST_DIGITS = 300
"""Every such integer fits a float. transformers writes the 31 digits of int(1e30) for a length without limit."""


@contextmanager
def opened(path: str | os.PathLike[str], *, stream: bool = False) -> Iterator[BinaryIO]:
    """Yields a file opened for reading bytes.

    Args:
      path: a local path or a URL.
      stream: whether a pipe or a device such as ``/dev/stdin`` is allowed.

    Raises:
      OSError: a local file cannot be opened.
      InputError: the same of a URL; or a local path that is no regular file, unless ``stream`` allows it.
    """
    if is_remote(path):
        with reaching(path) as remote, remote.open("rb") as file:
            yield cast(BinaryIO, file)
        return
    local = Path(path).expanduser()
    if stream:
        with open(local, "rb") as file:
            yield file
        return
    if descriptor(local) is not None:
        raise InputError(f"{path}: is a stream; give a file")
    # Without O_NONBLOCK, opening a pipe waits until another process opens it for writing.
    number = os.open(local, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(number, "rb") as file:
        mode = os.fstat(number).st_mode
        if not stat.S_ISREG(mode):
            raise InputError(f"{path}: is {_kind(mode)}; give a regular file")
        yield file


def _kind(mode: int) -> str:
    """Returns what a path is, by its ``st_mode``."""
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a directory"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def read_bytes(path: str | os.PathLike[str], most: int = SMALL) -> bytes:
    """Returns the bytes of a regular file.

    Args:
      path: a local path or a URL.
      most: the largest size in bytes.

    Raises:
      InputError: the file is missing, cannot be read, is no regular file, or is larger.
    """
    try:
        with opened(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            content = file.read(most + 1) if size <= most else b""
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise InputError(explain(error)) from None
    if size > most or len(content) > most:
        found = max(size, len(content))
        raise InputError(f"{path}: has {found:,} bytes; such a file has at most {most:,}. Check what it is")
    return content


def read_range(path: str | os.PathLike[str], start: int, size: int) -> bytes:
    """Returns ``size`` bytes of a file from offset ``start``, or fewer at its end. Raises as ``opened``."""
    with opened(path) as file:
        file.seek(start)
        return file.read(size)


def read_text(path: str | os.PathLike[str], most: int = SMALL) -> str:
    """Returns the text of a UTF-8 file. Raises InputError as ``read_bytes``, or if it is not UTF-8."""
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None


def read_json(path: str | os.PathLike[str], most: int = SMALL) -> Any:
    """Returns the value of a JSON file.

    Raises:
      InputError: as ``read_text``; or the file is not JSON, is nested more than 64 levels deep, or has an integer of
        more than 300 digits.
    """
    return parse_json(read_text(path, most), str(path))


def parse_json(text: str, where: str) -> Any:
    """Returns the value of a JSON text.

    Args:
      text: the text.
      where: its name, for messages.

    Raises:
      InputError: as ``read_json``.
    """
    try:
        value = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise InputError(f"{where}: not readable as JSON (nested too deeply)") from None
    except ValueError as error:
        raise InputError(f"{where}: not readable as JSON ({brief(error, 120)})") from None
    if is_deep(value):
        raise InputError(f"{where}: not readable as JSON (nested more than {_DEEPEST} levels deep)")
    return value


def _integer(digits: str) -> int:
    count = len(digits.lstrip("-"))
    if count > _MOST_DIGITS:
        raise ValueError(f"an integer of {count} digits")
    return int(digits)


def is_deep(value: Any) -> bool:
    """Returns whether a JSON value is nested too deeply. It looks at one level after the other, without recursion."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def read_json_object(path: str | os.PathLike[str], most: int = SMALL) -> dict[str, Any]:
    """Returns the object of a JSON file. Raises InputError as ``read_json``, or if it holds no object."""
    value = read_json(path, most)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_record(
    path: str | os.PathLike[str], fields: Mapping[str, type | tuple[type, ...]], most: int = SMALL
) -> dict[str, Any]:
    """Returns the object of a JSON file, some of whose fields are required.

    Args:
      path: a local path or a URL.
      fields: name -> type, or types one of which the value must have. ``float`` includes integers; ``int`` does not
        include booleans. Other fields may be present.
      most: the largest size in bytes.

    Raises:
      InputError: as ``read_json_object``; or a field is missing or of another type.
    """
    record = read_json_object(path, most)
    for name, types in fields.items():
        types = types if isinstance(types, tuple) else (types,)
        expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
        if name not in record:
            raise InputError(f"{path}: damaged: {name} is missing; expected {expected}")
        kind = type(record[name])
        if kind not in types and not (kind is int and float in types):
            raise InputError(f"{path}: damaged: {name} is {shown(record[name])}; expected {expected}")
    return record


def read_json_lines(path: str | os.PathLike[str], most: int = LOG) -> list[dict[str, Any]]:
    """Returns the objects of a JSON lines file, up to the first line that is not a JSON object.

    A killed process may leave an incomplete line. A file that does not exist gives an empty list.

    Raises:
      InputError: as ``read_bytes``.
    """
    values = []
    if _is_there(path):
        for line in read_bytes(path, most).splitlines():
            try:
                value = parse_json(line.decode("utf-8"), str(path))
            except ValueError:
                break
            if not isinstance(value, dict):
                break
            values.append(value)
    return values


def _is_there(path: str | os.PathLike[str]) -> bool:
    with reaching(path) as found:
        return found.exists() if is_remote(path) else os.path.lexists(path)


def mapped_array(path: str | os.PathLike[str], dtype: np.dtype) -> np.ndarray:
    """Maps a file of numbers into memory as an array [number of items]. Raises OSError, ValueError as ``opened``."""
    with opened(path) as file:
        return np.memmap(file, dtype, "r") if os.fstat(file.fileno()).st_size else np.empty(0, dtype)


def mapped_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Maps the array of a ``.npy`` file into memory. Raises OSError, ValueError, EOFError."""
    with opened(path):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def release(array: np.ndarray) -> None:
    """Takes the pages of a mapped array out of this process's memory; what is used again is read from the file again.

    Arrays that are not mapped stay as they are. So do all on systems that cannot do it.
    """
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.base.madvise(mmap.MADV_DONTNEED)


def size_of(path: str | os.PathLike[str]) -> int:
    """Returns the number of bytes of a file, local or in a bucket; 0 if there is no regular file of that name."""
    if is_remote(path):
        with reaching(path) as remote:
            about: Any = remote.stat() if remote.is_file() else None
            return 0 if about is None else int(about.length)
    local = os.path.expanduser(path)
    return os.path.getsize(local) if os.path.isfile(local) else 0


@contextmanager
def mapped(path: str | os.PathLike[str]) -> Iterator[mmap.mmap]:
    """Yields the bytes of a local file, mapped into memory for reading. Raises OSError, ValueError."""
    with opened(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        yield view
