"""Writing a directory so that a killed process leaves nothing, or all of it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deberta_jax.errors import InputError

_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json",
            "pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")  # fmt: skip


def check_free(directory: Path, *, overwrite: bool) -> None:
    """Refuses a directory whose contents would be mixed with a model's.

    Raises:
      InputError: a file, or a directory of other things than a model and not ``overwrite``.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: a file; give a directory")
    if directory.is_dir() and not overwrite and any(directory.iterdir()) and not (directory / _CONFIG).is_file():
        raise InputError(f"{directory}: not empty and not a model directory; give a new directory")


@contextmanager
def staged(directory: Path) -> Iterator[Path]:
    """A temporary directory that becomes ``directory``, or whose files move into it, when the block ends well.

    A new directory appears in one rename. Into one that exists, files move one by one, each by a rename, config.json
    last; files of weights that the new model does not have are removed.
    """
    existing = directory.is_dir() and any(directory.iterdir())
    parent = directory if existing else directory.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent, directory.name)
    stage = parent / f".{directory.name}.partial-{os.getpid()}"
    stage.mkdir()
    try:
        yield stage
        _sync(stage)
        if existing:
            _move_files(stage, directory)
        else:
            if directory.is_dir():
                directory.rmdir()
            stage.rename(directory)
        _sync(parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _move_files(stage: Path, directory: Path) -> None:
    new = {path.name for path in stage.iterdir()}
    for name in sorted(new, key=lambda name: name == _CONFIG):
        if (stage / name).is_dir():
            shutil.rmtree(directory / name, ignore_errors=True)
        (stage / name).rename(directory / name)
    for pattern in _WEIGHTS:
        for stale in directory.glob(pattern):
            if stale.name not in new:
                stale.unlink()


def _sweep(parent: Path, name: str) -> None:
    """Removes what killed processes left of the same directory."""
    for left in parent.glob(f".{name}.partial-*"):
        pid = left.name.rsplit("-", 1)[1]
        # Our own number: a container that restarts gives the same ones again.
        if not pid.isdigit() or int(pid) == os.getpid() or not _alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
