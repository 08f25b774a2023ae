"""Files by a path or a pattern: local ones, those in a zip as ``CoLA.zip/CoLA/train.tsv``, and ``gs://`` ones.

Any of them may be compressed with gzip (``.gz``) or Zstandard (``.zst``).
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


def matching(path: str) -> list[str]:
    """The files that a path or pattern means, sorted; a path is itself, whether there is a file or not.

    Raises:
      InputError: a pattern that matches none.
    """
    names = found(path) if storage.is_pattern(path) else [path]
    if not names:
        raise InputError(f"{path}: no file matches")
    return names


def found(path: str) -> list[str]:
    """The files that there are of a path or pattern, sorted. Raises InputError for a zip that cannot be read."""
    inside = None if storage.is_remote(path) else _split(path)
    if inside is None:
        return storage.matching(path)
    archive, member = inside
    names = members(archive)
    return [path] if member in names else [f"{archive}/{name}" for name in names if _matches(name, member)]


def ending(path: str) -> str:
    """Returns the ending that says what a file holds, in lower case and without that of its compression."""
    name = Path(path)
    if name.suffix.lower() in COMPRESSED:
        name = name.with_suffix("")
    return name.suffix.lower()


def decompressed(path: str, stream: Any) -> tuple[Any, tuple[type[Exception], ...]]:
    """Opens what a binary stream holds, by the ending of its path.

    Returns:
      A binary stream of the decompressed bytes, and the exceptions that it raises where the file is damaged.

    Raises:
      InputError: a ``.zst`` without the library for it.
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
    """Returns the contents of a file, decompressed. Raises InputError where there are none, or they are damaged."""
    content, damage = decompressed(path, io.BytesIO(read_bytes(path)))
    try:
        return content.read()
    except damage as error:
        raise InputError(f"{path}: damaged: {error}") from None


@contextmanager
def stored(path: str) -> Iterator[BinaryIO]:
    """Yields the bytes of a file as they are stored. Raises InputError where there are none to read."""
    try:
        with storage.opened(path) as stream:
            yield stream
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read ({reason})") from None


def read_bytes(path: str) -> bytes:
    """Returns the bytes of a file as they are stored. Raises InputError where there are none to read."""
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
    """The files in a zip, sorted. Raises InputError for one that cannot be read."""
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
    """The zip that a path leads into, and the name in it."""
    for parent in Path(path).parents:
        if parent.suffix == ".zip" and parent.is_file():
            return parent, Path(path).relative_to(parent).as_posix()
    return None


def _matches(name: str, pattern: str) -> bool:
    ours, theirs = PurePosixPath(name).parts, PurePosixPath(pattern).parts
    return len(ours) == len(theirs) and all(map(fnmatch.fnmatchcase, ours, theirs))
