"""Outputs of a command: checked before the work, held against other processes, there whole or not at all; caches."""

import contextlib
import fnmatch
import logging
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, TextIO, cast

import filelock

from deberta_jax.errors import InputError
from deberta_jax.storage.files import make_directory, partial_name, remove, writing
from deberta_jax.storage.places import check_file_kind, descriptor, explain, is_stream

LOCK = ".lock"
"""The name of the lock file in a directory that one process at a time may write."""

_log = logging.getLogger(__name__)


@contextmanager
def output_text(option: str, name: str) -> Iterator[TextIO]:
    """Yields the text file of a command's results, as ``output_file`` does. ``-``: standard output.

    Half a surrogate pair, which no UTF-8 can hold, is written as its escape, which JSON reads.

    Raises:
      InputError: as ``output_file``.
    """
    if name == "-":
        sys.stdout.flush()
        yield sys.stdout
        return
    with output_file(option, name) as file:
        yield cast(TextIO, _Text(file))


@contextmanager
def output_file(option: str, name: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yields a file of a command's results; it takes its name when the block ends well.

    The place is checked, and held against other processes, before the work of the block begins.

    Args:
      option: what the user gave the name by, such as ``--output``, for messages.

    Raises:
      InputError: it cannot be written, or another process is writing it.
    """
    check_output_file(option, name)
    place = Path(name).expanduser()
    with contextlib.ExitStack() as stack:
        try:
            if not is_stream(place):
                target = Path(os.path.realpath(place))
                stack.enter_context(locked(_lock_beside(target), f"{option} {name}"))
            file = stack.enter_context(writing(place))
        except OSError as error:
            raise InputError(f"{option} {explain(error)}") from None
        yield file


class _Text:
    """Text to a binary file: UTF-8, and lines that end in one byte everywhere."""

    def __init__(self, file: IO[bytes]):
        self.file = file

    def write(self, text: str) -> int:
        return self.file.write(text.encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        self.file.flush()


def check_output_file(option: str, name: str | os.PathLike[str]) -> None:
    """Raises InputError for a file that could not be written: told before the work, not after it. ``-`` can be."""
    _check_local(f"{option} {name}", str(name))
    place = Path(name).expanduser()
    if str(name) == "-" or descriptor(place) is not None:
        return
    try:
        mode = place.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    except OSError as error:
        raise InputError(f"{option} {explain(error)}") from None
    check_file_kind(f"{option} {name}", mode)
    if str(name).endswith(("/", os.sep)):
        raise InputError(f"{option} {name}: is the name of a directory; give a file")
    if not stat.S_ISREG(mode):
        return
    folder = Path(os.path.realpath(place)).parent
    if not folder.is_dir():
        raise InputError(f"{option} {name}: its directory does not exist; make it first")
    _check_writable(f"{option} {name}", folder)


def check_output_directory(option: str, name: str | os.PathLike[str]) -> None:
    """Raises InputError for a directory in which no file could be made, whether it is there already or not."""
    place, named = Path(name).expanduser(), f"{option} {name}".lstrip()
    _check_local(named, str(name))
    nearest = next(path for path in (place, *place.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        kind = "is a symbolic link that leads to no directory" if nearest.is_symlink() else "is a file"
        what = f"{kind}; give a directory" if nearest == place else f"{nearest} {kind}; give another directory"
        raise InputError(f"{named}: {what}")
    _check_writable(named, nearest)


def output_directory(option: str, name: str) -> Path:
    """Returns the local directory that a name means, with ``~`` as the home directory. Raises InputError for a URL."""
    _check_local(f"{option} {name}", name)
    return Path(name).expanduser()


def _check_local(named: str, name: str) -> None:
    if re.match(r"[a-z][a-z0-9]+:/", name):
        raise InputError(f"{named}: is written to a disk; mount the bucket, or give a local place")


def _check_writable(named: str, folder: Path) -> None:
    try:
        # Permissions alone do not tell what a mount, a quota or a security module refuses.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = explain(OSError(error.errno, error.strerror))
        raise InputError(f"{named}: nothing can be written in {folder} ({reason})") from None


def _lock_beside(place: Path) -> Path:
    """The lock file of a file, or of a directory that is not there yet."""
    return place.with_name(f".{place.name}{LOCK}")


@contextmanager
def locked(file: Path, name: str) -> Iterator[None]:
    """Holds a lock file, which is removed at the end, against other processes; the system frees it if this one dies.

    Args:
      file: in a directory that exists.
      name: what is locked, for the message.

    Raises:
      InputError: another process holds it.
    """
    if os.path.lexists(file) and (file.is_symlink() or not file.is_file() or file.stat().st_size):
        raise InputError(f"{file}: is in the place of a lock, and is none; remove or rename it")
    lock = filelock.FileLock(file, is_singleton=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(f"{name}: another process is writing there; wait for its end") from None
    except NotImplementedError:  # a file system without locks: the work is done all the same
        _log.warning("%s: this file system has no locks; do not write there with two processes at once", name)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # on Windows an open file stays until it is closed
            file.unlink(missing_ok=True)
        lock.release()


@contextmanager
def locked_directory(option: str, directory: Path) -> Iterator[None]:
    """Holds a directory, which is made if there is none, against other processes; one left empty is removed.

    Raises:
      InputError: it cannot be written, or another process holds it.
    """
    check_output_directory(option, directory)
    with _made(directory), locked(directory / LOCK, f"{option} {directory}"):
        yield


@contextmanager
def _made(directory: Path) -> Iterator[None]:
    """Makes a directory and those above it; of these, what is empty at the end of the block is removed."""
    made = [path for path in (directory, *directory.absolute().parents) if not os.path.lexists(path)]
    try:
        make_directory(directory)
        yield
    finally:
        with contextlib.suppress(OSError):  # a directory that holds anything stays
            for path in made:
                path.rmdir()


@contextmanager
def staged(directory: Path, *, last: str, stale: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yields a directory that becomes ``directory``, or whose files move into it, when the block ends well.

    A new directory appears in one rename. Into one that exists, files move one by one, each by a rename; a process that
    is killed meanwhile leaves a directory without ``last``, never old files beside new ones with it.

    Args:
      last: the name of the file without which the others count for nothing: it goes first, and comes last.
      stale: patterns of what is removed from an existing directory unless the block wrote it.

    Raises:
      InputError: another process is writing there.
      OSError: it cannot be written.
    """
    directory = Path(os.path.realpath(directory))
    # One that is there, even if empty, is someone's: a mount, a working directory, one with permissions of its own.
    existing = directory.is_dir()
    parent = directory if existing else directory.parent
    with _made(parent), locked(parent / _lock_beside(directory).name, str(directory)):
        stage = parent / partial_name(directory.name)
        remove(stage)  # what a killed process left
        stage.mkdir()
        try:
            yield stage
            _sync(stage)
            if existing:
                _move_files(stage, directory, last, stale)
            else:
                stage.rename(directory)
            _sync(parent)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _move_files(stage: Path, directory: Path, last: str, stale: tuple[str, ...]) -> None:
    (directory / last).unlink(missing_ok=True)
    _sync(directory)
    new = {path.name for path in stage.iterdir()}
    for place in list(directory.iterdir()):
        replaced = place.name in new and place.is_dir()
        if replaced or (place.name not in new and any(fnmatch.fnmatchcase(place.name, name) for name in stale)):
            remove(place)
    for name in sorted(new, key=lambda name: name == last):
        if (directory / name).is_file() and not (directory / name).is_symlink():
            shutil.copymode(directory / name, stage / name)
        (stage / name).rename(directory / name)


def _sync(path: Path) -> None:
    """Makes the disk keep what a directory has been told; systems that cannot open a directory do so themselves."""
    with contextlib.suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def cache_directory() -> Path | None:
    """Returns ``$XDG_CACHE_HOME/deberta_jax``, by default in ``~/.cache``; None where there is no home directory."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):
        return Path(named) / "deberta_jax"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ".cache" / "deberta_jax" if home.is_dir() else None


@contextmanager
def made_once(directory: Path) -> Iterator[Path]:
    """Yields a directory that becomes ``directory`` when the block ends well, unless another process was first.

    Raises:
      OSError: it cannot be written.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".partial-", dir=directory.parent))
    try:
        yield stage
        try:
            stage.rename(directory)
        except OSError:
            if not directory.is_dir():
                raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """Yields an empty directory that goes with the block. Raises OSError."""
    with tempfile.TemporaryDirectory(prefix="deberta_jax-") as name:
        yield Path(name)


def fill_standard_streams() -> None:
    """Opens the null device in place of standard streams that are closed: a file that is opened later would take their
    numbers, and get what native code prints. Messages to a closed standard error are dropped."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest that is free
        pass
    os.close(number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
