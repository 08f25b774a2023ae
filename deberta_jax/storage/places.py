"""Names of places on a local disk and in buckets, what is there, and what the system says when it refuses."""

import errno
import fnmatch
import glob
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deberta_jax.errors import InputError, printable

if TYPE_CHECKING:
    from etils import epath

    Place = Path | epath.Path
    """A place on a local disk, or in a bucket: of another class, with the same methods."""
else:
    Place = Any  # etils is slow to import; only remote places need it

_ADVICE = {
    errno.ENOSPC: "make room and run the same command again",
    errno.EDQUOT: "your share of this disk is used up; make room and run the same command again",
    errno.EROFS: "give a place on a disk that can be written",
    errno.EACCES: "give another place, or change its permissions",
    errno.EPERM: "give another place, or change its permissions",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file; check the path",
    errno.EISDIR: "name a file in it",
    errno.EBADF: "it is not open",
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
    return printable(f"{where}{what}; {advice}" if advice else f"{where}{what}")


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


def is_stream(place: str | os.PathLike[str]) -> bool:
    """Returns whether bytes can be read from a place only once, as from a pipe or ``/dev/stdin``."""
    if is_remote(place) or not os.path.exists(place):
        return False
    mode = os.stat(place).st_mode
    return descriptor(place) is not None or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def descriptor(place: str | os.PathLike[str]) -> int | None:
    """Returns the number of the open file that a place such as /dev/stdin or /dev/fd/3 names, if any."""
    number = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", str(place))
    names = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
    return int(number[1]) if number else names.get(str(place))


def check_file_kind(named: str, mode: int) -> None:
    """Raises InputError where a mode, as ``os.stat`` gives it, is that of a directory or a disk, which hold no bytes of
    a file."""
    if stat.S_ISDIR(mode) or stat.S_ISBLK(mode):
        raise InputError(f"{named}: is a {'directory' if stat.S_ISDIR(mode) else 'disk'}; give a file")


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
