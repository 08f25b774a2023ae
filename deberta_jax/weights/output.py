"""Writing a model directory so that a killed process leaves nothing, or all of it."""

from contextlib import AbstractContextManager
from pathlib import Path

from deberta_jax import storage
from deberta_jax.errors import InputError

_CONFIG = "config.json"
_WEIGHTS = (
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model-*.bin",
    "pytorch_model.bin.index.json",
)


def check_free(directory: Path, *, overwrite: bool) -> None:
    """Refuses a directory that cannot be written, or whose contents would be mixed with a model's.

    Raises:
      InputError: a file, a directory that cannot be written, or one of other things than a model and not ``overwrite``.
    """
    left = storage.partial_name(directory.resolve().name)
    interrupted = (directory / left).is_dir()  # while a model was replaced, config.json first
    there = directory.is_dir() and any(directory.iterdir())
    if there and not overwrite and not interrupted and not (directory / _CONFIG).is_file():
        raise InputError(f"{directory}: not empty and not a model directory; give a new directory")
    storage.check_output_directory("", directory)


def staged_model(directory: Path, *stale: str) -> AbstractContextManager[Path]:
    """Returns the block in which a model directory is written, as ``storage.staged``: config.json comes last, and
    weights that the new model does not have are removed, and files of the names in ``stale``."""
    return storage.staged(directory, last=_CONFIG, stale=(*_WEIGHTS, *stale))
