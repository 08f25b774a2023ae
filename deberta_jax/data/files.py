"""Files by a path or a pattern: local ones, those in a zip as ``CoLA.zip/CoLA/train.tsv``, and ``gs://`` ones."""

import fnmatch
import glob
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from deberta_jax.errors import InputError


def matching(path: str) -> list[str]:
    """The files that a path or pattern means, sorted; a path is itself, whether there is a file or not.

    Raises:
      InputError: a pattern that matches none.
    """
    names = found(path) if _is_pattern(path) else [path]
    if not names:
        raise InputError(f"{path}: no file matches")
    return names


def found(path: str) -> list[str]:
    """The files that there are of a path or pattern, sorted. Raises InputError for a zip that cannot be read."""
    if "://" in path:
        from etils import epath  # slow to import; only remote files need it

        place = epath.Path(path)
        if _is_pattern(path):
            return sorted(str(file) for file in place.parent.glob(place.name))
        return [path] if place.is_file() else []
    inside = _split(path)
    if inside is not None:
        archive, member = inside
        names = members(archive)
        return [path] if member in names else [f"{archive}/{name}" for name in names if _matches(name, member)]
    # A folder's name may have brackets: what is there by the letter is meant by the letter.
    if Path(path).is_file():
        return [path]
    if not _is_pattern(path):
        return []
    base = Path(path).parent
    while _is_pattern(str(base)) and not base.is_dir():
        base = base.parent
    pattern = os.path.join(glob.escape(str(base)), Path(path).relative_to(base))
    return sorted(str(Path(file)) for file in glob.glob(pattern))


def read_bytes(path: str) -> bytes:
    """The contents of a file. Raises InputError where there are none to read."""
    try:
        if "://" in path:
            from etils import epath

            return epath.Path(path).read_bytes()
        inside = _split(path)
        if inside is None:
            return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except ImportError as error:
        raise InputError(f"{path}: {error}; pip install 'deberta_jax[gcs]'") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
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
        with zipfile.ZipFile(archive) as file:
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


def _is_pattern(path: str) -> bool:
    return any(c in path for c in "*?[")
