"""Checks, locks and atomically writes the outputs of commands; finds and fills caches."""

import contextlib
import fnmatch
import logging
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, TextIO, cast

import filelock

from deberta_jax.errors import InputError, RunAgainError
from deberta_jax.storage.files import make_directory, partials, remove, temporary_name, upload, write_bytes, writing
from deberta_jax.storage.paths import (
    AnyPath,
    as_path,
    check_file_kind,
    descriptor,
    explain,
    is_remote,
    is_stream,
    reaching,
)

LOCK = ".lock"
"""Name of the lock file in a directory that only one process at a time may write."""

_log = logging.getLogger(__name__)


@contextmanager
def output_text(option: str, name: str) -> Iterator[TextIO]:
    """Yields a text file for the results of a command, as ``output_file`` does; ``-`` is standard output.

    A lone surrogate, which UTF-8 cannot represent, is written as its JSON escape.

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
    """Yields a file for the results of a command, which appears under its name when the block ends without an error.

    The path is checked and locked before the block begins.

    Args:
      option: the option that the name was given by, such as ``--output``, for messages.
      name: the path of the file.

    Raises:
      InputError: the file cannot be written, or another process is writing it.
    """
    check_output_file(option, name)
    if is_remote(name):
        with writing(name) as file:
            yield file
        return
    path = Path(name).expanduser()
    with contextlib.ExitStack() as stack:
        try:
            if not is_stream(path):
                target = Path(os.path.realpath(path))
                stack.enter_context(locked(lock_beside(target), f"{option} {name}"))
                _remove_old(target.parent, target.name, seconds=0)  # no other process writes it now
            file = stack.enter_context(writing(path))
        except OSError as error:
            raise InputError(f"{option} {explain(error)}") from None
        yield file


class _Text:
    """Writes text to a binary file as UTF-8, with LF as line end on every system."""

    def __init__(self, file: IO[bytes]):
        self.file = file

    def write(self, text: str) -> int:
        return self.file.write(text.encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        self.file.flush()


def check_output_file(option: str, name: str | os.PathLike[str]) -> None:
    """Checks, before any work is done, that a file can be written; ``-`` always can.

    Raises:
      InputError: it cannot be written.
      RunAgainError: a bucket cannot be reached now.
    """
    if is_url(option, name):
        if str(name).endswith("/"):
            raise InputError(f"{option} {name}: is the name of a directory; give a file")
        _check_bucket(f"{option} {name}", as_path(name).parent)
        return
    path = Path(name).expanduser()
    if str(name) == "-" or descriptor(path) is not None:
        return
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    except OSError as error:
        raise InputError(f"{option} {explain(error)}") from None
    check_file_kind(f"{option} {name}", mode)
    if str(name).endswith(("/", os.sep)):
        raise InputError(f"{option} {name}: is the name of a directory; give a file")
    if not stat.S_ISREG(mode):
        return
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise InputError(f"{option} {name}: its directory does not exist; make it first")
    _check_writable(f"{option} {name}", folder)


def check_output_directory(option: str, name: str | os.PathLike[str]) -> None:
    """Checks that files can be written in a directory, which may not exist yet.

    Raises:
      InputError: they cannot be written, or the path is not a directory.
      RunAgainError: a bucket cannot be reached now.
    """
    named = f"{option} {name}".lstrip()
    if is_url(option, name):
        _check_bucket(named, as_path(name))
        with reaching(name) as remote:
            if remote.is_file():
                raise InputError(f"{named}: is an object; give the name of a directory")
        return
    directory = Path(name).expanduser()
    nearest = next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        kind = "is a symbolic link that leads to no directory" if nearest.is_symlink() else "is a file"
        what = f"{kind}; give a directory" if nearest == directory else f"{nearest} {kind}; give another directory"
        raise InputError(f"{named}: {what}")
    _check_writable(named, nearest)


def output_directory(option: str, name: str) -> AnyPath:
    """Returns the path of a directory, with ``~`` expanded. Raises InputError for a URL that cannot be used."""
    is_url(option, name)
    return as_path(name)


def local_directory(option: str, name: str) -> Path:
    """Returns the path of a directory on a local disk, with ``~`` expanded. Raises InputError for a URL."""
    if is_url(option, name):
        raise InputError(f"{option} {name}: must be on a local disk; give a local path")
    return Path(name).expanduser()


def is_url(option: str, name: str | os.PathLike[str], schemes: tuple[str, ...] = ("gs", "s3")) -> bool:
    """Returns whether an option has the URL of a bucket as its value. Raises InputError for a URL of another scheme."""
    try:
        return is_remote(name, schemes)
    except InputError as error:
        raise InputError(f"{option} {error}".lstrip()) from None


def _check_bucket(named: str, directory: AnyPath) -> None:
    """Writes an object into a bucket and removes it: nothing else shows which permissions are there."""
    probe = directory / temporary_name("probe")
    try:
        write_bytes(probe, b"")
        remove(probe)
    except (InputError, RunAgainError) as error:
        raise type(error)(f"{named}: {str(error).removeprefix(f'{probe}: ')}") from None


def _check_writable(named: str, folder: Path) -> None:
    try:
        # Permissions alone do not show what a mount, a quota or a security module refuses.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = explain(OSError(error.errno, error.strerror))
        raise InputError(f"{named}: nothing can be written in {folder} ({reason})") from None


def lock_beside(path: Path) -> Path:
    """Returns the path of the lock file for a file, or for a directory that does not exist yet."""
    return path.with_name(f".{path.name}{LOCK}")


@contextmanager
def locked(file: Path, name: str) -> Iterator[None]:
    """Holds a lock for the time of the block, and removes the lock file at its end.

    The operating system releases the lock if this process is killed.

    Args:
      file: path of the lock file; its directory exists.
      name: what is locked, for the message.

    Raises:
      InputError: another process holds the lock, or the path is a file that is not a lock.
    """
    if os.path.lexists(file) and (file.is_symlink() or not file.is_file() or file.stat().st_size):
        raise InputError(f"{file}: has the name of a lock file but is not one; remove or rename it")
    lock = filelock.FileLock(file, is_singleton=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(f"{name}: another process is writing there; wait for its end") from None
    except NotImplementedError:  # a file system without locks does not prevent the work
        _log.warning("%s: this file system has no locks; do not write there with two processes at once", name)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows does not remove an open file
            file.unlink(missing_ok=True)
        lock.release()


@contextmanager
def locked_directory(option: str, directory: AnyPath) -> Iterator[None]:
    """Locks a directory for the time of the block.

    The directory is made if it does not exist; what was made and is still empty at the end is removed. A directory in a
    bucket cannot be locked, which is logged.

    Raises:
      InputError: the directory cannot be written, or another process holds the lock.
    """
    check_output_directory(option, directory)
    if not isinstance(directory, Path):
        _log.info("%s %s: a bucket has no locks; do not write there with two commands at once", option, directory)
        yield
        return
    with _made(directory), locked(directory / LOCK, f"{option} {directory}"):
        yield


@contextmanager
def _made(directory: Path) -> Iterator[None]:
    """Makes a directory and its parents. Removes those that it made and that are empty at the end of the block."""
    made = [path for path in (directory, *directory.absolute().parents) if not os.path.lexists(path)]
    try:
        make_directory(directory)
        yield
    finally:
        with contextlib.suppress(OSError):  # a directory that holds anything stays
            for path in made:
                path.rmdir()


@contextmanager
def staged(directory: AnyPath, *, last: str, stale: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yields a temporary directory that replaces ``directory`` when the block ends without an error.

    A new directory appears in one rename. If ``directory`` exists, the files are renamed into it one by one. A process
    that is killed in between leaves a directory without the file ``last``, which readers treat as incomplete. The files
    for a bucket are written to a local disk, and uploaded at the end.

    Args:
      directory: the target, which may exist.
      last: name of the file that marks a complete directory. The old one is removed first, the new one is moved last.
      stale: glob patterns of files that are removed from an existing directory unless the block wrote them.

    Raises:
      InputError: another process is writing there.
      OSError: the directory cannot be written.
    """
    if not isinstance(directory, Path):
        with scratch() as stage:
            yield stage
            _upload(stage, directory, last, stale)
        return
    directory = Path(os.path.realpath(directory))
    # An existing directory is not replaced even if it is empty: it may be a mount, or have its own permissions.
    existing = directory.is_dir()
    parent = directory if existing else directory.parent
    with _made(parent), locked(parent / lock_beside(directory).name, str(directory)):
        _remove_old(parent, directory.name, seconds=0)  # no other process writes there now
        stage = parent / temporary_name(directory.name)
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


def _upload(stage: Path, directory: AnyPath, last: str, stale: tuple[str, ...]) -> None:
    """Replaces a directory in a bucket as ``_move_files`` does."""
    remove(directory / last)
    new = {path.name: path for path in stage.iterdir()}
    with reaching(directory):
        old = list(directory.iterdir()) if directory.is_dir() else []
        for path in old:
            if new[path.name].is_dir() if path.name in new else _is_stale(path.name, stale):
                remove(path)
    files = sorted((path for path in stage.rglob("*") if path.is_file()), key=lambda path: (path == stage / last, path))
    for path in files:
        with open(path, "rb") as file:
            upload(file, directory / path.relative_to(stage).as_posix())


def _move_files(stage: Path, directory: Path, last: str, stale: tuple[str, ...]) -> None:
    (directory / last).unlink(missing_ok=True)
    _sync(directory)
    new = {path.name for path in stage.iterdir()}
    for path in list(directory.iterdir()):
        if path.is_dir() if path.name in new else _is_stale(path.name, stale):
            remove(path)
    for name in sorted(new, key=lambda name: name == last):
        if (directory / name).is_file() and not (directory / name).is_symlink():
            shutil.copymode(directory / name, stage / name)
        (stage / name).rename(directory / name)


def _is_stale(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _sync(path: Path) -> None:
    """Flushes the entries of a directory to disk. Does nothing on systems that cannot open a directory."""
    with contextlib.suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def cache_directory() -> Path | None:
    """Returns ``$XDG_CACHE_HOME/deberta_jax``, by default in ``~/.cache``; None if there is no home directory."""
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
    """Yields a temporary directory that is renamed to ``directory`` when the block ends without an error.

    If another process has made ``directory`` meanwhile, that one is kept and the temporary one is removed.

    Raises:
      OSError: the directory cannot be written.
    """
    make_directory(directory.parent)
    stage = directory.parent / temporary_name("made")
    _remove_old(directory.parent, "made", seconds=24 * 3600)  # others may be at work there
    stage.mkdir()  # with the permissions that the umask gives: several users may share a cache
    try:
        yield stage
        try:
            stage.rename(directory)
        except OSError:
            if not directory.is_dir():
                raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _remove_old(directory: Path, name: str, *, seconds: int) -> None:
    """Removes what killed processes have left of a file or directory, if it is at least so many seconds old."""
    for path in partials(directory, name):
        with contextlib.suppress(OSError):  # of another user, in a directory that many can write; or removed meanwhile
            if path.lstat().st_mtime <= time.time() - seconds:
                remove(path)


@contextmanager
def scratch() -> Iterator[Path]:
    """Yields an empty temporary directory, which is removed after the block. Raises OSError."""
    with tempfile.TemporaryDirectory(prefix="deberta_jax-") as name:
        yield Path(name)


def fill_standard_streams() -> None:
    """Opens the null device for each standard stream that is closed.

    Otherwise a file that is opened later would take the descriptor of the stream and receive what native code prints.
    Messages to a closed standard error are dropped.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # open returns the lowest free descriptor
        pass
    os.close(number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
