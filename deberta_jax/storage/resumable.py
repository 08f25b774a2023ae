"""Writes lines that take hours to compute, so that a command that was killed goes on where it was."""

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from deberta_jax.errors import InputError
from deberta_jax.storage.files import make_private_directory, remove, upload, write_json, writing
from deberta_jax.storage.outputs import cache_directory, check_output_file, lock_beside, locked, output_text, scratch
from deberta_jax.storage.paths import descriptor, explain, is_remote, is_stream
from deberta_jax.storage.readers import read_json

_log = logging.getLogger(__name__)

_COMMAND, _LINES = "command.json", "lines"
_NAMES = {_COMMAND, _LINES}
_BLOCK = 1 << 20


class Lines:
    """Holds the lines of an output, in a file or a stream.

    Attributes:
      count: the number of lines that an interrupted command has left.
    """

    def __init__(self, file: Any, count: int = 0):
        self._file, self.count = file, count

    def keep(self, count: int) -> None:
        """Removes all lines after the first ``count``. Does nothing for a stream."""
        if not isinstance(self._file, io.BufferedRandom):
            return
        self._file.seek(0)
        for _ in range(count):
            self._file.readline()
        self._file.truncate(self._file.tell())
        self._file.seek(0, os.SEEK_END)

    def write(self, text: str) -> None:
        """Appends whole lines. They are there after a crash. Raises OSError."""
        if isinstance(self._file, io.BufferedRandom):
            self._file.write(text.encode("utf-8", "backslashreplace"))
            self._file.flush()
            os.fsync(self._file.fileno())
        else:
            self._file.write(text)
            self._file.flush()


Finish = Callable[[BinaryIO, BinaryIO], None]


@contextmanager
def resumable_lines(
    option: str, name: str, command: Mapping[str, Any], finish: Finish | None = None
) -> Iterator[Lines]:
    """Yields lines that become the file ``name`` when the block ends without an error.

    Until then they are kept in the directory ``.NAME.unfinished`` beside it, or for an object in a bucket in the cache
    of this user. If the process is killed or interrupted, the same command finds them there. After an InputError they
    are removed. ``-``, pipes and devices are written as the lines come.

    Args:
      option: the option that the name was given by, for messages.
      name: the path of the file.
      command: what determines the lines, as JSON; lines of another command are removed.
      finish: writes the file, given the complete lines and the file, both opened; None if the lines are the file.

    Raises:
      InputError: the file cannot be written, or another process is writing it.
    """
    path = Path(name).expanduser()
    if not is_remote(name) and (name == "-" or descriptor(path) is not None or is_stream(path)):
        with output_text(option, name) as stream:
            yield Lines(stream)
        return
    check_output_file(option, name)
    with contextlib.ExitStack() as stack:
        target = _name_in_cache(stack, name) if is_remote(name) else Path(os.path.realpath(path))
        unfinished = target.with_name(f".{target.name}.unfinished")
        stack.enter_context(locked(lock_beside(target), f"{option} {name}"))
        try:
            begun = _begun(unfinished, command)
            with _removed_after_bad_input(unfinished):
                with (unfinished / _LINES).open("r+b" if begun else "w+b") as file:
                    lines = Lines(file, sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK), b"")))
                    if lines.count:
                        _log.info("%s %s: an interrupted command has left %d lines", option, name, lines.count)
                    yield lines
                _put(unfinished / _LINES, name if is_remote(name) else target, finish)
        except OSError as error:
            raise InputError(f"{option} {explain(error)}") from None
        except KeyboardInterrupt:
            _log.info("%s %s: the same command goes on where it was", option, name)
            raise
        remove(unfinished)


def _name_in_cache(stack: contextlib.ExitStack, url: str) -> Path:
    """Returns a path in the cache of this user that stands for an object; without a cache in a temporary directory."""
    cache = cache_directory()
    home = stack.enter_context(scratch()) if cache is None else cache / "unfinished"
    try:
        make_private_directory(home)
    except OSError as error:
        raise InputError(explain(error)) from None
    return home / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{PurePosixPath(url).name}"


@contextmanager
def _removed_after_bad_input(unfinished: Path) -> Iterator[None]:
    """Removes a directory if the block raises InputError."""
    try:
        yield
    except InputError:
        remove(unfinished)
        raise


def _put(lines: Path, target: str | Path, finish: Finish | None) -> None:
    """Puts complete lines, or the file made of them, in place. It takes the permissions of a file that it replaces.

    Args:
      target: a local path, or the URL of an object.
    """
    if finish is not None:
        with lines.open("rb") as file, writing(target) as out:
            finish(file, out)
        return
    if not isinstance(target, Path):
        with lines.open("rb") as file:
            upload(file, target)
        return
    if target.exists():
        shutil.copymode(target, lines)
    os.replace(lines, target)


def _begun(unfinished: Path, command: Mapping[str, Any]) -> bool:
    """Returns whether a directory holds lines of the same command; makes it anew otherwise.

    Raises:
      InputError: there is something else of that name.
      OSError: the directory cannot be made, or others may write there.
    """
    told = json.loads(json.dumps(command))
    if os.path.lexists(unfinished):
        if unfinished.is_symlink() or not unfinished.is_dir() or not {p.name for p in unfinished.iterdir()} <= _NAMES:
            raise InputError(f"{unfinished}: is in the way of a file that is being written; move it away")
        make_private_directory(unfinished)  # raises if others may write there
        with contextlib.suppress(InputError):
            if read_json(unfinished / _COMMAND) == told and (unfinished / _LINES).is_file():
                return True
        _log.info("%s: holds lines of another command, and is removed", unfinished)
        remove(unfinished)
    make_private_directory(unfinished)
    write_json(unfinished / _COMMAND, told)
    return False


def change_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Changes a JSON file that several processes write, one after the other.

    Args:
      path: the file.
      change: returns the new value, given the one of the file; None if there is none that can be read.

    Raises:
      InputError: another process has kept the file locked for a minute.
      OSError: the file cannot be written.
    """
    for _ in range(600):
        with contextlib.suppress(InputError), locked(lock_beside(path), str(path)):
            value = None
            with contextlib.suppress(InputError):
                value = read_json(path)
            write_json(path, change(value))
            return
        time.sleep(0.1)
    raise InputError(f"{path}: another process keeps it locked; end that one, and run the same command again")
