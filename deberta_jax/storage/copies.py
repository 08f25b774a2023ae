"""Copies directories of a bucket to a local disk, once for each version of their files."""

import atexit
import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deberta_jax.errors import InputError
from deberta_jax.storage.files import make_directory
from deberta_jax.storage.outputs import cache_directory, made_once
from deberta_jax.storage.paths import AnyPath, file_system, reaching

_log = logging.getLogger(__name__)

# What the clients of buckets call the version of an object. It changes when the object is replaced.
_VERSIONS = ("generation", "ETag", "etag", "md5Hash", "mtime", "LastModified", "created")


def names_below(url: str) -> dict[str, str]:
    """Returns the files of a directory in a bucket and in its subdirectories: relative name to version.

    Raises:
      InputError: the directory cannot be read; one that does not exist has no files.
      RunAgainError: the bucket cannot be reached now.
    """
    with reaching(url):
        client, root = file_system(url.rstrip("/"))
        found: dict[str, dict[str, Any]] = client.find(root, detail=True)
    prefix = f"{root}/"
    return {
        name.removeprefix(prefix): "/".join(str(info.get(key)) for key in ("size", *_VERSIONS))
        for name, info in found.items()
        if name.startswith(prefix) and info["type"] == "file"
    }


def object_digest(url: str) -> str | None:
    """Returns the digest that a bucket keeps of an object's content, and the size; None if it keeps none.

    Raises:
      InputError: there is no such object, or it cannot be read.
      RunAgainError: the bucket cannot be reached now.
    """
    with reaching(url):
        client, name = file_system(url)
        about: dict[str, Any] = client.info(name)
    known = next((key for key in ("md5Hash", "crc32c") if about.get(key)), None)  # composed objects have no MD5
    return None if known is None else f"{known}:{about[known]}:{about['size']}"


def files_below(directory: AnyPath, name: str) -> list[AnyPath]:
    """Returns the sorted files of a name in a directory and in its subdirectories. Raises as ``names_below``."""
    if isinstance(directory, Path):
        return sorted(directory.rglob(name))
    return [directory / file for file in sorted(names_below(str(directory))) if file.rpartition("/")[2] == name]


def local_copy(url: str, choose: Callable[[Sequence[str]], Sequence[str]]) -> Path:
    """Returns a local directory with files of a directory in a bucket, after copying them if they are not there.

    Copies are kept in the cache of this user, by the names and versions of the files: a file that is replaced in the
    bucket is copied again. Without such a cache they are kept until this process ends.

    Args:
      url: the directory.
      choose: returns those of the relative names that are wanted.

    Raises:
      InputError: the directory does not exist, or cannot be read.
      RunAgainError: the bucket cannot be reached now.
      OSError: the copy cannot be written.
    """
    url = url.rstrip("/")
    versions = names_below(url)
    if not versions:
        raise InputError(f"{url}: there is nothing of that name")
    wanted = sorted(choose(sorted(versions)))
    identity = json.dumps([url, [(name, versions[name]) for name in wanted]])
    name = url.rpartition("/")[2]  # messages and reports show it
    target = _home() / hashlib.sha256(identity.encode()).hexdigest()[:32] / name
    if not target.is_dir():
        _log.info("%s: copying %d files to %s", url, len(wanted), target)
        with made_once(target) as stage, reaching(url):
            client, root = file_system(url)
            for file in wanted:
                path = stage.joinpath(*_parts(url, file))
                make_directory(path.parent)
                client.get_file(f"{root}/{file}", str(path))
    return target


def _parts(url: str, name: str) -> list[str]:
    """Returns the parts of a relative name. Raises InputError for a name that leads out of its directory."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or os.sep in part or "\\" in part for part in parts):
        raise InputError(f"{url}: the name of the object {name!r} is no path; rename it")
    return parts


def _home() -> Path:
    """Returns the directory of all copies."""
    cache = cache_directory()
    if cache is not None:
        with contextlib.suppress(OSError):
            make_directory(cache / "buckets")
            return cache / "buckets"
    return _temporary()


_made: list[Path] = []


def _temporary() -> Path:
    """Returns a directory that is removed when this process ends."""
    if not _made:
        _made.append(Path(tempfile.mkdtemp(prefix="deberta_jax-")))
        atexit.register(shutil.rmtree, _made[0], ignore_errors=True)
    return _made[0]
