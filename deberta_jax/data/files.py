"""Finds and reads data files: local ones, files in a zip (``CoLA.zip/CoLA/train.tsv``), and ``gs://`` objects.

All of them may be compressed with gzip (``.gz``) or Zstandard (``.zst``).
"""

import fnmatch
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from deberta_jax import storage
from deberta_jax.errors import InputError

COMPRESSED = (".gz", ".zst")


def matching_files(path: str) -> list[str]:
    """Returns the sorted names of the files that match a pattern; a path is returned even if no file exists.

    Raises:
      InputError: the pattern matches no file.
    """
    names = found(path) if storage.is_pattern(path) else [path]
    if not names:
        raise InputError(f"{path}: no file matches")
    return names


def found(path: str) -> list[str]:
    """Returns the sorted names of existing files that match a path or pattern. Raises InputError for a damaged zip."""
    inside = None if storage.is_remote(path) else _split(path)
    if inside is None:
        return storage.matching(path)
    archive, member = inside
    names = members(archive)
    return [path] if member in names else [f"{archive}/{name}" for name in names if _matches(name, member)]


def ending(path: str) -> str:
    """Returns the suffix of a file in lower case, without that of its compression."""
    name = Path(path)
    if name.suffix.lower() in COMPRESSED:
        name = name.with_suffix("")
    return name.suffix.lower()


def decompressed(path: str, stream: Any) -> tuple[Any, tuple[type[Exception], ...]]:
    """Opens a binary stream for decompression, by the suffix of its path.

    Returns:
      A binary stream of the decompressed bytes, and the exceptions that it raises if the file is damaged.

    Raises:
      InputError: the library for ``.zst`` is missing.
    """
    compression = Path(path).suffix.lower()
    if compression == ".gz":
        return gzip.open(stream), (gzip.BadGzipFile, zlib.error, EOFError)
    if compression != ".zst":
        return stream, ()
    try:
        from backports import zstd
    except ImportError:
        try:
            from compression import zstd  # pyright: ignore[reportMissingImports]  # Python 3.14
        except ImportError:
            raise InputError(f"{path}: .zst needs a library; pip install 'deberta_jax[zstd]'") from None
    return zstd.open(stream), (zstd.ZstdError, EOFError)


def read_content(path: str) -> bytes:
    """Returns the decompressed contents of a file. Raises InputError if it cannot be read or is damaged."""
    content, damage = decompressed(path, io.BytesIO(read_stored(path)))
    try:
        return content.read()
    except damage as error:
        raise InputError(f"{path}: damaged: {error}") from None


@contextmanager
def stored(path: str) -> Iterator[BinaryIO]:
    """Yields a file opened for reading the stored bytes. Raises InputError if it cannot be read."""
    try:
        with storage.opened(path, stream=True) as stream:
            yield stream
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read ({reason})") from None


def read_stored(path: str) -> bytes:
    """Returns the stored bytes of a file, which may be in a zip. Raises InputError if it cannot be read."""
    inside = None if storage.is_remote(path) else _split(path)
    if inside is None:
        with stored(path) as stream:
            return stream.read()
    archive, member = inside
    with _opened(archive) as file:
        if member not in file.namelist():
            raise InputError(f"{path}: no such file in the archive")
        return file.read(member)


def members(archive: Path) -> list[str]:
    """Returns the sorted names of the files in a zip. Raises InputError if it cannot be read."""
    with _opened(archive) as file:
        return sorted(name for name in file.namelist() if not name.endswith("/"))


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with storage.opened(archive) as content, zipfile.ZipFile(content) as file:
            yield file
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError) as error:  # RuntimeError: encrypted
        raise InputError(f"{archive}: cannot be read as zip ({error})") from None


def _split(path: str) -> tuple[Path, str] | None:
    """Splits a path into a zip and the name in it; None if no part of the path is a zip."""
    for parent in Path(path).parents:
        if parent.suffix == ".zip" and parent.is_file():
            return parent, Path(path).relative_to(parent).as_posix()
    return None


def _matches(name: str, pattern: str) -> bool:
    """Returns whether a name in a zip matches a pattern, in which wildcards do not match ``/``."""
    ours, theirs = PurePosixPath(name).parts, PurePosixPath(pattern).parts
    return len(ours) == len(theirs) and all(map(fnmatch.fnmatchcase, ours, theirs))
