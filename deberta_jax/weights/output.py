"""Writes model directories atomically."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.storage import AnyPath

_CONFIG = "config.json"
_WEIGHTS = (
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model-*.bin",
    "pytorch_model.bin.index.json",
)


def check_free(directory: AnyPath, *, overwrite: bool) -> None:
    """Checks that a model can be written to a directory.

    Args:
      directory: the target, which may not exist.
      overwrite: whether it may have contents that are no model.

    Raises:
      InputError: it is a file, it cannot be written, or it has other contents and not ``overwrite``.
    """
    # A process was killed while it replaced a model: config.json, which is removed first, is missing.
    interrupted = any(path.is_dir() for path in storage.partials(directory, directory.resolve().name))
    with storage.reaching(directory):
        there = directory.is_dir() and any(directory.iterdir())
        model = there and (directory / _CONFIG).is_file()
    if there and not overwrite and not interrupted and not model:
        raise InputError(f"{directory}: not empty and not a model directory; give a new directory")
    storage.check_output_directory("", directory)


@contextmanager
def staged_model(directory: AnyPath, *stale: str) -> Iterator[Path]:
    """Yields a temporary directory that becomes or replaces a model directory, as ``storage.staged``.

    The digests of its files are listed when the block ends. config.json is moved last. Weights and files named in
    ``stale`` that the new model does not have are removed.
    """
    with storage.staged(directory, last=_CONFIG, stale=(*_WEIGHTS, *stale)) as stage:
        yield stage
        storage.write_checksums(stage)
