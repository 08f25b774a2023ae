"""Writes a list of the digests of a directory's files, and compares the files with it.

``checksums.json`` holds for each file its size, its modification time and the SHA-256 digests of consecutive blocks. A
file has about 16 blocks, or more, so that no block is larger than 4 MiB: threads digest blocks in parallel, a quick
check reads some blocks of a large file, and the number of blocks that differ tells a damaged file from one that was
written again. The list holds a digest of its own contents, so damage to the list is noticed as well.
"""

import hashlib
import json
import os
import random
import stat
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from deberta_jax.errors import InputError
from deberta_jax.storage.files import write_text
from deberta_jax.storage.paths import AnyPath, explain
from deberta_jax.storage.readers import read_json_object, read_range

CHECKSUMS = "checksums.json"
"""Name of the list in a directory."""

_FORMAT = "deberta_jax checksums 1"
_BLOCKS = 16
_SMALLEST_BLOCK, _LARGEST_BLOCK = 64, 4 << 20
_SMALLEST_ZEROS = 4 << 10
_SAMPLED_BLOCKS = 4
_SMALL_FILE = 16 << 20
"""Files up to this size, such as configs and tokenizers, are digested whole in every check."""


class FileEntry(NamedTuple):
    """Describes a file as it was written.

    Attributes:
      size: number of bytes.
      mtime_ns: its modification time, in nanoseconds.
      block: number of bytes of all blocks but the last.
      digests: SHA-256 digests of the blocks, hexadecimal.
    """

    size: int
    mtime_ns: int
    block: int
    digests: tuple[str, ...]


class Difference(NamedTuple):
    """Describes how a file differs from its entry.

    Attributes:
      name: path of the file, relative to the directory.
      kind: the file is missing, of another size, or of the same size with other bytes. A directory or pipe in its place
        counts as missing.
      compared: number of blocks that were compared.
      differing: number of these that differ.
      zeros: whether a block that differs consists of zeros, as after an interrupted copy. False for blocks
        smaller than 4 kB.
      cut: whether the file is empty, or shorter and all complete blocks that it still has are as listed.
      same_time: whether the modification time is the listed one.
      newer: whether the file was modified after the list.
    """

    name: str
    kind: Literal["missing", "size", "bytes"]
    compared: int = 0
    differing: int = 0
    zeros: bool = False
    cut: bool = False
    same_time: bool = False
    newer: bool = False

    def text(self) -> str:
        """Returns a phrase for messages, such as ``a.bin is missing``."""
        if self.kind == "missing":
            return f"{self.name} is missing"
        if self.kind == "size":
            return f"{self.name} is {'cut short' if self.cut else 'of another size'}"
        return f"{self.name} has other bytes ({self.differing} of {self.compared} blocks)"


class Comparison(NamedTuple):
    """Holds the result of comparing a directory with its list.

    Attributes:
      files: number of files of the list that were compared.
      size: the sum of their listed sizes, in bytes.
      differences: the files that differ.
    """

    files: int
    size: int
    differences: tuple[Difference, ...]


def write_checksums(directory: Path, files: Iterable[Path] | None = None) -> None:
    """Writes the list of a local directory. It must be the last file written there.

    Args:
      directory: the directory.
      files: files below the directory; None: all.

    Raises:
      OSError: a file cannot be read, or the list cannot be written.
    """
    if files is None:
        files = (path for path in directory.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    names = sorted(path.relative_to(directory).as_posix() for path in files)
    entries = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name in names:
            status = (directory / name).stat()
            block = min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK, -(-status.st_size // _BLOCKS)))
            digests = _digests(pool, directory / name, status.st_size, block, range(-(-status.st_size // block)))
            entries[name] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "block": block, "sha256": digests}
    body = {"format": _FORMAT, "files": entries}
    write_text(directory / CHECKSUMS, json.dumps(body | {"sha256": _own_digest(body)}, indent=1) + "\n")


def read_checksums(directory: AnyPath) -> dict[str, FileEntry] | None:
    """Returns the entries of a directory's list by file name; None if there is no list.

    Raises:
      InputError: the list is damaged, or of another version.
    """
    path = directory / CHECKSUMS
    if not path.is_file():
        return None
    try:
        value = read_json_object(path)
        own = value.pop("sha256")
        if value["format"] != _FORMAT or own != _own_digest(value):
            raise InputError(f"{path}: damaged, or of another version of this program")
        return {name: _entry(name, entry) for name, entry in value["files"].items()}
    except InputError as error:
        raise InputError(f"{error}; copy the directory again, or delete this file") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: damaged; copy the directory again, or delete this file") from None


def _entry(name: str, value: dict[str, Any]) -> FileEntry:
    """Returns a parsed entry. Raises ValueError if it is malformed or names a file outside the directory."""
    entry = FileEntry(value["size"], value["mtime_ns"], value["block"], tuple(value["sha256"]))
    numbers = type(entry.size) is int and type(entry.mtime_ns) is int and type(entry.block) is int
    if not numbers or entry.size < 0 or not 0 < entry.block <= _LARGEST_BLOCK:
        raise ValueError
    if len(entry.digests) != -(-entry.size // entry.block) or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError
    return entry


def _own_digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def compare_checksums(
    directory: AnyPath, *, full: bool, entries: dict[str, FileEntry] | None = None
) -> Comparison | None:
    """Compares the files of a directory with its list. Files that are not listed are ignored.

    Args:
      directory: a local directory, or one in a bucket.
      full: whether every byte is compared; otherwise small files, the first, the last and some random blocks of each
        larger one, and the sizes of all.
      entries: what ``read_checksums`` returns for the directory, or a part of it; None: it is read.

    Returns:
      The result; None if there is no list.

    Raises:
      InputError: the list is damaged, or a file cannot be read.
    """
    entries = read_checksums(directory) if entries is None else entries
    if entries is None:
        return None
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = [_compare_file(pool, directory, name, entry, full) for name, entry in entries.items()]
    except OSError as error:
        raise InputError(explain(error)) from None
    differences = tuple(difference for difference in found if difference is not None)
    return Comparison(len(entries), sum(entry.size for entry in entries.values()), differences)


def find_damage(directory: AnyPath) -> str | None:
    """Compares a directory that no other program writes with its list, in full.

    Returns:
      What is wrong, as a phrase that names the file; None if every listed file is as it was written, or if there is no
      list.

    Raises:
      InputError: a file cannot be read.
    """
    try:
        entries = read_checksums(directory)
    except InputError:
        return f"{CHECKSUMS} is damaged"
    compared = None if entries is None else compare_checksums(directory, full=True, entries=entries)
    return compared.differences[0].text() if compared is not None and compared.differences else None


def _compare_file(
    pool: ThreadPoolExecutor, directory: AnyPath, name: str, entry: FileEntry, full: bool
) -> Difference | None:
    path = directory / name
    status = _status(path)
    if status is None:
        return Difference(name, "missing")
    size, mtime_ns = status
    same_time = mtime_ns == entry.mtime_ns
    newer = not same_time and mtime_ns is not None and mtime_ns > (_status(directory / CHECKSUMS) or (0, 0))[1]
    blocks: Sequence[int] = range(min(size, entry.size) // entry.block if size != entry.size else len(entry.digests))
    if not full and entry.size > _SMALL_FILE and len(blocks) > _SAMPLED_BLOCKS:
        # Other blocks each time: a damaged block is found sooner or later. The first holds the header of a file.
        blocks = [0, *sorted(random.sample(blocks[1:-1], _SAMPLED_BLOCKS - 2)), blocks[-1]]
    found = _digests(pool, path, size, entry.block, blocks)
    wrong = [digest for block, digest in zip(blocks, found, strict=True) if digest != entry.digests[block]]
    if size == entry.size and not wrong:
        return None
    cut = not size or (size < entry.size and len(blocks) > 0 and not wrong)
    kind = "bytes" if size == entry.size else "size"
    return Difference(name, kind, len(blocks), len(wrong), _zeros(entry, wrong), cut, same_time, newer)


def _status(path: AnyPath) -> tuple[int, int] | None:
    """Returns the size and the modification time in nanoseconds of a regular file; None if there is no such file."""
    if not isinstance(path, Path):
        return (path.stat().length, 0) if path.is_file() else None
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _zeros(entry: FileEntry, digests: Sequence[str]) -> bool:
    """Returns whether one of the digests is that of a block of zeros."""
    last = entry.size % entry.block
    if entry.block < _SMALLEST_ZEROS:
        return False
    return bool(digests) and any(hashlib.sha256(bytes(size)).hexdigest() in digests for size in {entry.block, last})


def _digests(pool: ThreadPoolExecutor, path: AnyPath, size: int, block: int, numbers: Sequence[int]) -> list[str]:
    """Returns the digests of the blocks of a file that have these numbers."""

    def digest(numbers: Sequence[int]) -> list[str]:
        start = numbers[0] * block
        data = memoryview(read_range(path, start, min(block * len(numbers), size - start)))
        return [hashlib.sha256(data[i * block : (i + 1) * block]).hexdigest() for i in range(len(numbers))]

    step = max(1, _LARGEST_BLOCK // block) if isinstance(numbers, range) else 1
    tasks = [numbers[i : i + step] for i in range(0, len(numbers), step)]
    return [found for part in pool.map(digest, tasks) for found in part]
