"""Where bytes live: files and directories on a local disk, and objects in a bucket such as ``gs://bucket/name``.

All other modules open, list, write, rename and lock through this one. Files are written beside their place and renamed,
so that a killed process leaves the old file or the new one, and never a part of it. Failures of the operating system
stay ``OSError``, whose cause and remedy ``explain`` puts into one line.
"""

import contextlib
import errno
import fnmatch
import glob
import json
import logging
import mmap
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TextIO, cast

import filelock
import numpy as np

from deberta_jax.errors import InputError

if TYPE_CHECKING:
    from etils import epath

    Place = Path | epath.Path
    """A place on a local disk, or in a bucket: of another class, with the same methods."""
else:
    Place = Any  # etils is slow to import; only remote places need it

LOCK = ".lock"
"""The name of the lock file in a directory that one process at a time may write."""

_log = logging.getLogger(__name__)

_ADVICE = {
    errno.ENOSPC: "make room and run the same command again",
    errno.EDQUOT: "your share of this disk is used up; make room and run the same command again",
    errno.EROFS: "give a place on a disk that can be written",
    errno.EACCES: "give another place, or change its permissions",
    errno.EPERM: "give another place, or change its permissions",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file; check the path",
    errno.EISDIR: "name a file in it",
    errno.EEXIST: "give another name",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "its symbolic links lead in a circle; check the path",
    errno.EMFILE: "raise the limit of this shell, as in `ulimit -n 4096`",
    errno.ENFILE: "close other programs, or raise the limit of this machine",
    errno.ENOMEM: "close other programs, or take a machine with more memory",
    errno.EFBIG: "the file would be larger than this disk or `ulimit -f` allows",
    errno.EIO: "the disk, or the network to it, has failed; copy the file elsewhere and try again",
    errno.ESTALE: "the network disk has lost it; mount the disk again and run the same command again",
    errno.EBUSY: "another program holds it; end that and run the same command again",
    errno.ETIMEDOUT: "the network did not answer; run the same command again",
    errno.ECONNREFUSED: "nothing answers at that address; check it",
}


def explain(error: OSError) -> str:
    """Returns what the operating system refused, for which file, and what to do, in one line."""
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
    what = error.strerror or " ".join(str(error).split()) or type(error).__name__
    advice = _ADVICE.get(error.errno or 0)
    return f"{where}{what}; {advice}" if advice else f"{where}{what}"


# ---- names -----------------------------------------------------------------------------------------------------------


def is_remote(place: str | os.PathLike[str], schemes: tuple[str, ...] = ("gs", "s3")) -> bool:
    """Returns whether a place is a URL.

    Raises:
      InputError: a URL of another scheme, or one that ``pathlib`` has cut short.
    """
    text = str(place)
    if re.match(r"[a-z][a-z0-9]+:/[^/]", text):
        raise InputError(f"{text}: pathlib has cut this URL short; give it as text, {text.replace(':/', '://', 1)}")
    if "://" in text and not re.match(rf"({'|'.join(schemes)})://[^/]+", text):
        known = ", ".join(f"{scheme}://bucket/directory" for scheme in schemes)
        raise InputError(f"{text}: of URLs only {known} can be used here")
    return "://" in text


def place_of(name: str | os.PathLike[str]) -> Place:
    """Returns the path of a local name, with ``~`` as the home directory, or of a URL. Raises as ``is_remote``."""
    if not is_remote(name):
        return Path(name).expanduser()
    from etils import epath  # slow to import; only remote places need it

    return epath.Path(str(name))


@contextmanager
def reaching(place: str | os.PathLike[str]) -> Iterator[Place]:
    """Yields the path of a remote place; whatever fails on the way there is an InputError of one line."""
    try:
        yield place_of(place)
    except (InputError, TypeError, AttributeError, LookupError, AssertionError):
        raise  # ours, or a mistake of a program
    except FileNotFoundError:
        raise InputError(f"{place}: there is nothing of that name") from None
    except ImportError as error:
        raise InputError(f"{place}: {error}; pip install 'deberta_jax[gcs]', or use a local directory") from None
    except Exception as error:  # of the client, its transport, its credentials: all mean that the place is out of reach
        raise InputError(f"{place}: cannot be reached ({' '.join(str(error).split())[:200]})") from None


# ---- reading ---------------------------------------------------------------------------------------------------------


@contextmanager
def opened(place: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yields the bytes of a file as they are stored. Raises OSError where there are none, InputError for a URL."""
    if is_remote(place):
        with reaching(place) as remote, remote.open("rb") as file:
            yield cast(BinaryIO, file)
        return
    with open(place, "rb") as file:
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


# ---- listing ---------------------------------------------------------------------------------------------------------


def is_pattern(name: str) -> bool:
    """Returns whether a name has a character that stands for others."""
    return any(character in name for character in "*?[")


def matching(pattern: str) -> list[str]:
    """Returns the names of the files that a path or pattern means, sorted; none for a path without a file."""
    if is_remote(pattern):
        with reaching(pattern) as place:
            if is_pattern(pattern):
                return sorted(str(file) for file in place.parent.glob(place.name))
            return [pattern] if place.is_file() else []
    # A folder's name may have brackets: what is there by the letter is meant by the letter.
    if os.path.exists(pattern) and not os.path.isdir(pattern):
        return [pattern]
    if not is_pattern(pattern):
        return []
    base = Path(pattern).parent
    while is_pattern(str(base)) and not base.is_dir():
        base = base.parent
    inside = Path(pattern).relative_to(base).as_posix()
    return sorted(str(Path(file)) for file in glob.glob(os.path.join(glob.escape(str(base)), inside)))


def files_in(directory: Place, *patterns: str) -> list[Any]:
    """Returns the files right in a directory whose names match any of the patterns, sorted; all without patterns."""
    wanted = lambda name: not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    return sorted(place for place in directory.iterdir() if wanted(place.name) and place.is_file())


# ---- writing ---------------------------------------------------------------------------------------------------------


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
    stream = _stream(Path(place))
    if stream is not None:
        with stream:
            yield stream
        return
    staged_file = StagedFile(Path(place))
    try:
        yield staged_file.file
        staged_file.keep()
    finally:
        staged_file.drop()


class StagedFile:
    """A local file that is written under another name beside its place until ``keep`` is called.

    Raises:
      OSError: the place cannot be written.
    """

    def __init__(self, place: Path):
        self.target = Path(os.path.realpath(place))
        self.partial = self.target.with_name(f".{self.target.name}.partial")
        self.file: BinaryIO = open(self.partial, "wb")  # noqa: SIM115  # closed by keep and drop

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


def is_stream(place: str | os.PathLike[str]) -> bool:
    """Returns whether bytes can be read from a place only once, as from a pipe or ``/dev/stdin``."""
    if is_remote(place) or not os.path.exists(place):
        return False
    mode = os.stat(place).st_mode
    return _descriptor(place) is not None or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _descriptor(place: str | os.PathLike[str]) -> int | None:
    """The number of an open file of this process that a place is another name of."""
    number = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", str(place))
    names = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
    return int(number[1]) if number else names.get(str(place))


def _stream(place: Path) -> BinaryIO | None:
    """Opens what bytes pass through, such as a pipe, /dev/null or /dev/stdout; None for a file, or a name to be one."""
    number = _descriptor(place)
    if number is not None:  # a new file of its own would begin at the start of what another program has written
        return os.fdopen(os.dup(number), "wb")
    try:
        mode = place.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode) or stat.S_ISBLK(mode):
        raise InputError(f"{place}: is a {'directory' if stat.S_ISDIR(mode) else 'disk'}; give a file")
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


# ---- outputs of a command --------------------------------------------------------------------------------------------


@contextmanager
def output_file(option: str, name: str) -> Iterator[TextIO]:
    """Yields the text file of a command's results; it takes its name when the block ends well. ``-``: standard output.

    The place is checked, and held against other processes, before the work of the block begins.

    Args:
      option: what the user gave the name by, such as ``--output``, for messages.

    Raises:
      InputError: it cannot be written, or another process is writing it.
    """
    if name == "-":
        sys.stdout.flush()
        yield sys.stdout
        return
    place = Path(name).expanduser()
    check_output_file(option, name)
    with contextlib.ExitStack() as stack:
        try:
            if not place.exists() or place.is_file():
                target = Path(os.path.realpath(place))
                stack.enter_context(locked(target.with_name(f".{target.name}.lock"), f"{option} {name}"))
            file = stack.enter_context(writing(place))
        except OSError as error:
            raise InputError(f"{option} {explain(error)}") from None
        # Detached at the end: the file below is closed, and renamed, by what opened it.
        text = _Text(file)
        yield cast(TextIO, text)


class _Text:
    """Text to a binary file: UTF-8, and lines that end in one byte everywhere."""

    def __init__(self, file: IO[bytes]):
        self.file = file

    def write(self, text: str) -> int:
        return self.file.write(text.encode())

    def flush(self) -> None:
        self.file.flush()


def check_output_file(option: str, name: str) -> None:
    """Raises InputError for a file that could not be written: told before the work, not after it. ``-`` can be."""
    if name == "-" or is_remote(name):
        return
    place = Path(name).expanduser()
    try:
        mode = place.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    except OSError as error:
        raise InputError(f"{option} {explain(error)}") from None
    if stat.S_ISDIR(mode) or stat.S_ISBLK(mode):
        raise InputError(f"{option} {name}: is a {'directory' if stat.S_ISDIR(mode) else 'disk'}; give a file")
    if not stat.S_ISREG(mode):
        return
    folder = Path(os.path.realpath(place)).parent
    if not folder.is_dir():
        raise InputError(f"{option} {name}: its directory does not exist; make it first")
    _check_writable(f"{option} {name}", folder)


def check_output_directory(option: str, name: str | os.PathLike[str]) -> None:
    """Raises InputError for a directory in which no file could be made, whether it is there already or not."""
    place, named = Path(name).expanduser(), f"{option} {name}".lstrip()
    nearest = next(path for path in (place, *place.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        what = "is a file; give a directory" if nearest == place else f"{nearest} is a file; give another directory"
        raise InputError(f"{named}: {what}")
    _check_writable(named, nearest)


def _check_writable(named: str, folder: Path) -> None:
    try:
        # Permissions alone do not tell what a mount, a quota or a security module refuses.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = explain(OSError(error.errno, error.strerror))
        raise InputError(f"{named}: nothing can be written in {folder} ({reason})") from None


@contextmanager
def locked(file: Path, name: str) -> Iterator[None]:
    """Holds a lock file, which is removed at the end, against other processes; the system frees it if this one dies.

    Args:
      file: in a directory that exists.
      name: what is locked, for the message.

    Raises:
      InputError: another process holds it.
    """
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
    made = [path for path in (directory, *directory.absolute().parents) if not path.exists()]
    make_directory(directory)
    try:
        with locked(directory / LOCK, f"{option} {directory}"):
            yield
    finally:
        with contextlib.suppress(OSError):  # a directory that holds anything stays
            for path in made:
                path.rmdir()


@contextmanager
def staged(directory: Path, *, last: str, stale: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yields a directory that becomes ``directory``, or whose files move into it, when the block ends well.

    A new directory appears in one rename. Into one that exists, files move one by one, each by a rename.

    Args:
      last: the name of the file that moves last: without it the others count for nothing.
      stale: patterns of files that are removed from an existing directory unless the block wrote them.

    Raises:
      InputError: another process is writing there.
      OSError: it cannot be written.
    """
    directory = Path(os.path.realpath(directory))
    # What is mounted there, or filled, stays and takes the files.
    existing = directory.is_dir() and (any(directory.iterdir()) or os.path.ismount(directory))
    parent = directory if existing else directory.parent
    parent.mkdir(parents=True, exist_ok=True)
    with locked(parent / f".{directory.name}.lock", str(directory)):
        stage = parent / f".{directory.name}.partial"
        remove(stage)  # what a killed process left
        stage.mkdir()
        try:
            yield stage
            _sync(stage)
            if existing:
                _move_files(stage, directory, last, stale)
            else:
                if directory.is_dir():
                    directory.rmdir()
                stage.rename(directory)
            _sync(parent)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _move_files(stage: Path, directory: Path, last: str, stale: tuple[str, ...]) -> None:
    new = {path.name for path in stage.iterdir()}
    for name in sorted(new, key=lambda name: name == last):
        if (stage / name).is_dir():
            shutil.rmtree(directory / name, ignore_errors=True)
        (stage / name).rename(directory / name)
    for place in files_in(directory, *stale) if stale else ():
        if place.name not in new:
            place.unlink()


def _sync(path: Path) -> None:
    """Makes the disk keep what a directory has been told; systems that cannot open a directory do so themselves."""
    with contextlib.suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# ---- caches ----------------------------------------------------------------------------------------------------------


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
