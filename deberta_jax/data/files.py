"""Finds and reads data files, local or in a bucket, also in a zip: ``CoLA.zip/CoLA/train.tsv``, ``gs://b/train.tsv``.

All of them may be compressed with gzip (``.gz``) or Zstandard (``.zst``).
"""

import fnmatch
import gzip
import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from deberta_jax import storage
from deberta_jax.data.reading import BLOCK, Counting, blocks_of, check_expansion, damage, text_parts
from deberta_jax.errors import InputError, brief

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
    inside = _split(path)
    if inside is None:
        return storage.matching(path)
    archive, member = inside
    names = members(archive)
    return [path] if member in names else [f"{archive}/{name}" for name in names if matches(name, member)]


def stored_file(path: str) -> Path | None:
    """Returns the local file that holds a file: itself, or its zip; None for a stream, a directory or a URL."""
    if path == "-" or storage.is_remote(path) or path.startswith("hub:"):
        return None
    inside = _split(path)
    file = Path(path).expanduser() if inside is None else inside[0]
    return file if isinstance(file, Path) and file.is_file() else None


def in_archive(path: str) -> bool:
    """Returns whether a path names a file in a zip."""
    return _split(path) is not None


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


def read_content(path: str, *, document: bool = False) -> str:
    """Returns the decompressed text of a file.

    Args:
      path: the file, which may be in a zip.
      document: whether it is one JSON value, which may be a single line.

    Raises:
      InputError: it cannot be read, is damaged, or is no text; as ``reading.text_parts``.
    """
    with opened_text(path, document=document) as parts:
        return "".join(parts)


@contextmanager
def opened_text(path: str, *, document: bool = False) -> Iterator[Iterator[str]]:
    """Yields the decompressed text of a file in parts. Arguments and errors are those of ``read_content``."""
    with packed(path) as (stream, is_packed):
        counted = Counting(stream)
        content, errors = decompressed(path, counted)
        is_packed = is_packed or content is not counted
        with damage(path, errors):
            yield text_parts(path, blocks_of(path, content, counted if is_packed else None), document=document)


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


@contextmanager
def packed(path: str) -> Iterator[tuple[BinaryIO, bool]]:
    """Yields a file, which may be in a zip, opened for reading, and whether it is in a zip.

    Raises:
      InputError: it cannot be read, or would be far larger than its zip.
    """
    inside = _split(path)
    if inside is None:
        with stored(path) as stream:
            yield stream, False
        return
    archive, member = inside
    with _opened(archive) as file:
        if member not in file.namelist():
            raise InputError(f"{path}: no such file in the archive")
        entry = file.getinfo(member)
        check_expansion(path, entry.file_size, entry.compress_size)
        with file.open(member) as stream:
            yield cast(BinaryIO, stream), True


def hashed(path: str, *, text: bool) -> str:
    """Returns the SHA-256 in hex of the stored bytes of a file, which may be in a zip.

    Args:
      path: the file.
      text: whether it is text, perhaps compressed: then it has no long sequence of NUL bytes, and hashing stops there.

    Raises:
      InputError: as ``packed``; or such a sequence is found.
    """
    digest, at = hashlib.sha256(), 0
    with packed(path) as (stream, _):
        while block := stream.read(BLOCK):
            if text and not block[0] and not block.strip(b"\0"):
                raise InputError(f"{path}: has only NUL bytes from byte {at} on; it is damaged, copy it again")
            digest.update(block)
            at += len(block)
    return digest.hexdigest()


def members(archive: storage.AnyPath) -> list[str]:
    """Returns the sorted names of the files in a zip. Raises InputError if it cannot be read."""
    with _opened(archive) as file:
        return sorted(name for name in file.namelist() if not name.endswith("/"))


@contextmanager
def _opened(archive: storage.AnyPath) -> Iterator[zipfile.ZipFile]:
    try:
        with storage.opened(archive) as content, zipfile.ZipFile(content) as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{archive}: no such file") from None
    except (
        zipfile.BadZipFile,
        zlib.error,
        RuntimeError,
        NotImplementedError,
        EOFError,
        OSError,
    ) as error:  # RuntimeError: encrypted
        raise InputError(f"{archive}: cannot be read as zip ({brief(error, 200)})") from None


def _split(path: str) -> tuple[storage.AnyPath, str] | None:
    """Splits a path into a zip and the name in it; None if no part of the path is a zip."""
    if ".zip" not in path:  # asks no bucket for what cannot be there
        return None
    with storage.reaching(path) as whole:
        for parent in whole.parents:
            if parent.suffix == ".zip" and parent.is_file():
                return parent, PurePosixPath(*whole.parts[len(parent.parts) :]).as_posix()
    return None


def matches(name: str, pattern: str) -> bool:
    """Returns whether a path or a name in a zip matches a pattern, in which wildcards do not match ``/``."""
    ours, theirs = PurePosixPath(name).parts, PurePosixPath(pattern).parts
    return len(ours) == len(theirs) and all(map(fnmatch.fnmatchcase, ours, theirs))
