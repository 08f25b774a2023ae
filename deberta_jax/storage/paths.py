"""Handles local and remote paths, lists what they hold, and explains errors of the operating system."""

import contextlib
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

from deberta_jax.errors import InputError, RunAgainError, printable

if TYPE_CHECKING:
    from etils import epath

    AnyPath = Path | epath.Path
    """A local path, or a path in a bucket, which is of another class with the same methods."""
else:
    AnyPath = Any  # etils is slow to import; only remote paths need it

_ADVICE = {
    errno.ENOSPC: "make room and run the same command again",
    errno.EDQUOT: "your share of this disk is used up; make room and run the same command again",
    errno.EROFS: "give a path on a disk that can be written",
    errno.EACCES: "give another path, or change its permissions",
    errno.EPERM: "give another path, or change its permissions",
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
    """Returns one line that names the file, what the operating system refused, and what to do about it."""
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
    what = error.strerror or " ".join(str(error).split()) or type(error).__name__
    advice = _ADVICE.get(error.errno or 0)
    return printable(f"{where}{what}; {advice}" if advice else f"{where}{what}")


# Failures of a disk or a network that may be over when the same command is run again.
_PASSING = {
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPIPE, errno.EAGAIN),
}


def may_pass(error: BaseException) -> bool:
    """Returns whether an error of a disk, a network or a service may be over when the same command is run again.

    A path that does not exist, a permission or room that is missing stay until somebody changes it.
    """
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING
    if _is_forbidden(error):
        return False
    # Clients of buckets: those of HTTP have a status, and their errors of connections are an OSError without a number.
    code = getattr(error, "code", None) or getattr(error, "status", None)
    if isinstance(code, int):
        return code in (408, 429) or code >= 500
    return isinstance(error, OSError) and not isinstance(error, PermissionError | FileNotFoundError)


def _is_forbidden(error: BaseException) -> bool:
    """Returns whether a client of a bucket says that a permission or the credentials are missing."""
    return str(error).startswith("Forbidden") or type(error).__name__ in (
        "DefaultCredentialsError",
        "NoCredentialsError",
    )


def is_remote(path: str | os.PathLike[str], schemes: tuple[str, ...] = ("gs", "s3")) -> bool:
    """Returns whether a path is a URL of one of the schemes.

    Raises:
      InputError: the URL has another scheme, or ``pathlib`` has collapsed its two slashes into one.
    """
    text = str(path)
    if re.match(r"[a-z][a-z0-9]+:/[^/]", text):
        raise InputError(f"{text}: pathlib has cut this URL short; give it as text, {text.replace(':/', '://', 1)}")
    if "://" in text and not re.match(rf"({'|'.join(schemes)})://[^/]+", text):
        known = ", ".join(f"{scheme}://bucket/directory" for scheme in schemes)
        raise InputError(f"{text}: of URLs only {known} can be used here")
    return "://" in text


def as_path(name: str | os.PathLike[str]) -> AnyPath:
    """Converts a local name, in which ``~`` is the home directory, or a URL to a path. Raises as ``is_remote``."""
    if not is_remote(name):
        return Path(name).expanduser()
    from etils import epath  # slow to import; only remote paths need it

    _ask_always()
    return epath.Path(str(name))


def absolute(path: AnyPath) -> AnyPath:
    """Returns a path that does not depend on the working directory; a URL does not."""
    return path.absolute() if isinstance(path, Path) else path


def file_system(url: str) -> tuple[Any, str]:
    """Returns the client of a bucket, as fsspec has it, and the name of a URL in it. Raises ImportError."""
    import fsspec  # slow to import; only remote paths need it

    _ask_always()
    return fsspec.core.url_to_fs(url)


def _ask_always() -> None:
    """Makes the clients of buckets list a directory anew each time: other processes write there too."""
    with contextlib.suppress(ImportError):  # the client that is missing is named when it is used
        from fsspec.config import conf

        for scheme in ("gs", "gcs", "s3"):
            conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)


@contextmanager
def reaching(path: str | os.PathLike[str]) -> Iterator[AnyPath]:
    """Yields a path. If it is remote, errors of the client inside the block are converted to errors of one line.

    Raises:
      InputError: there is nothing of that name, a permission is missing, or the client is not installed.
      RunAgainError: the network or the service fails, which may be over when the same command is run again.
    """
    if not is_remote(path):
        yield as_path(path)
        return
    try:
        yield as_path(path)
    except (InputError, RunAgainError, TypeError, AttributeError, LookupError, AssertionError):
        raise  # raised by this package, or a programming error
    except FileNotFoundError:
        raise InputError(f"{path}: there is nothing of that name") from None
    except ImportError as error:
        extra = str(path).partition(":")[0].replace("gs", "gcs")
        raise InputError(f"{path}: {error}; pip install 'deberta_jax[{extra}]', or use a local directory") from None
    except Exception as error:  # from the client, its transport or its credentials: the path cannot be reached
        kind = RunAgainError if may_pass(error) else InputError
        raise kind(f"{path}: {_unreachable(error)}") from None


# The packages whose errors are those of a bucket's client, its transport or its credentials.
_CLIENTS = {"gcsfs", "s3fs", "aiohttp", "google", "botocore", "aiobotocore", "requests", "urllib3"}


def client_error(error: BaseException) -> InputError | RunAgainError | None:
    """Converts an error that the client of a bucket raised to one of one line; returns None for other errors."""
    names = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    if not names & _CLIENTS and not _is_forbidden(error):
        return None
    return (RunAgainError if may_pass(error) else InputError)(f"a bucket {_unreachable(error)}")


def _unreachable(error: BaseException) -> str:
    """Returns why a bucket cannot be used and what to do, as a phrase."""
    why = " ".join(str(error).split())[:200] or type(error).__name__
    if may_pass(error):
        return f"cannot be reached ({why}); run the same command again"
    if _is_forbidden(error) or isinstance(error, PermissionError):
        return f"cannot be used ({why}); give this account the permission to read, write, list and delete objects"
    return f"cannot be reached ({why})"


def beside(path: str, name: str) -> str:
    """Returns the path or URL of another file in the same directory."""
    if not is_remote(path):
        return str(Path(path).with_name(name))
    return f"{path.rpartition('/')[0]}/{name}"


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path can be read only once, like a pipe or ``/dev/stdin``."""
    if is_remote(path) or not os.path.exists(path):
        return False
    mode = os.stat(path).st_mode
    return descriptor(path) is not None or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def descriptor(path: str | os.PathLike[str]) -> int | None:
    """Returns the file descriptor that a path such as /dev/stdin or /dev/fd/3 names; None for other paths."""
    number = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", str(path))
    names = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
    return int(number[1]) if number else names.get(str(path))


def check_file_kind(named: str, mode: int) -> None:
    """Checks that a path is not a directory or a block device.

    Args:
      named: the name of the path, for the message.
      mode: ``st_mode`` of ``os.stat``.

    Raises:
      InputError: it is one of them.
    """
    if stat.S_ISDIR(mode) or stat.S_ISBLK(mode):
        raise InputError(f"{named}: is a {'directory' if stat.S_ISDIR(mode) else 'disk'}; give a file")


def is_pattern(name: str) -> bool:
    """Returns whether a name has a wildcard of glob patterns."""
    return any(character in name for character in "*?[")


def matching(pattern: str) -> list[str]:
    """Returns the sorted names of the files that match a path or glob pattern; an empty list if none exists."""
    if is_remote(pattern):
        with reaching(pattern) as path:
            if is_pattern(pattern):
                return sorted(str(file) for file in path.parent.glob(path.name))
            return [pattern] if path.is_file() else []
    # The name of a directory may contain brackets, so a name that exists as it stands is not a pattern.
    if os.path.exists(pattern) and not os.path.isdir(pattern):
        return [pattern]
    if not is_pattern(pattern):
        return []
    base = Path(pattern).parent
    while is_pattern(str(base)) and not base.is_dir():
        base = base.parent
    inside = Path(pattern).relative_to(base).as_posix()
    return sorted(str(Path(file)) for file in glob.glob(os.path.join(glob.escape(str(base)), inside)))


def files_in(directory: AnyPath, *patterns: str) -> list[Any]:
    """Returns the sorted files of a directory whose names match any pattern; all files if there are no patterns.

    Subdirectories are not searched.
    """
    wanted = lambda name: not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    return sorted(path for path in directory.iterdir() if wanted(path.name) and path.is_file())
