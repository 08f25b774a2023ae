"""Reads data sets of the Hugging Face hub and directories of ``save_to_disk``, with the library ``datasets``."""

import hashlib
import json
from pathlib import Path
from typing import Any

from deberta_jax import storage
from deberta_jax.data.files import ending, hashed, in_archive
from deberta_jax.data.parquet_file import table_of_arrow
from deberta_jax.data.table import Table, reason
from deberta_jax.errors import InputError

PREFIX = "hub:"
_FOLDER, _FOLDERS = "state.json", "dataset_dict.json"


def is_dataset(path: str) -> bool:
    """Returns whether a path is ``hub:NAME...`` or a directory that ``save_to_disk`` wrote."""
    return path.startswith(PREFIX) or any((Path(path) / name).is_file() for name in (_FOLDER, _FOLDERS))


def read_dataset(path: str) -> Table:
    """Reads one split of a data set, with the names of its classes.

    Args:
      path: ``hub:OWNER/NAME``, ``hub:OWNER/NAME/CONFIG`` or ``hub:NAME/CONFIG``, followed by ``@SPLIT`` if there are
        several splits; or a directory of ``save_to_disk``, or of a split in it.

    Raises:
      InputError: the data set does not exist, has several splits, or ``datasets`` is missing.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(f"{path}: needs the library datasets; pip install 'deberta_jax[hub]'") from None
    if path.startswith(PREFIX):
        found, split = _from_hub(datasets, path)
    else:
        found, split = _call(path, datasets.load_from_disk, path), ""
    if isinstance(found, dict):
        found = _one_split(path, found, split)
    table = _call(path, lambda: found.with_format("arrow")[:])
    return table_of_arrow(path, table.replace_schema_metadata(found.features.arrow_schema.metadata))


def digest(path: str) -> str:
    """Returns the SHA-256 in hex of a file, of a directory of ``save_to_disk``, or of the rows of a hub data set.

    Of an object in a bucket it is the digest that the bucket keeps, if it does: the object is not read for it.
    """
    if path.startswith(PREFIX):
        table = read_dataset(path)
        content = json.dumps([table.columns, dict(table.class_names)], sort_keys=True, default=str).encode()
    elif is_dataset(path):
        files = sorted(file for file in Path(path).rglob("*") if file.is_file())
        parts = [[file.relative_to(path).as_posix(), hashed(str(file), text=False)] for file in files]
        content = json.dumps(parts).encode()
    else:
        if storage.is_stream(path):
            raise InputError(f"{path}: can be read only once, and is needed twice; write it to a file first")
        if storage.is_remote(path) and not in_archive(path) and (kept := storage.object_digest(path)):
            return kept
        return hashed(path, text=ending(path) != ".parquet")
    return hashlib.sha256(content).hexdigest()


def _from_hub(datasets: Any, path: str) -> tuple[Any, str]:
    """Loads ``hub:...`` and returns the data set and the name of the split, "" if none is given."""
    name, _, split = path.removeprefix(PREFIX).partition("@")
    parts = name.split("/")
    if not all(parts) or len(parts) > 3:
        raise InputError(f"{path}: give hub:OWNER/NAME, hub:OWNER/NAME/CONFIG or hub:NAME/CONFIG, and @SPLIT behind it")
    if len(parts) == 3:
        return _call(path, datasets.load_dataset, "/".join(parts[:2]), parts[2]), split
    try:
        return datasets.load_dataset(name), split
    except Exception as error:
        if len(parts) == 1:
            raise InputError(f"{path}: cannot be loaded ({reason(error)})") from None
    # Older names have no owner: what follows the slash is a configuration.
    return _call(path, datasets.load_dataset, *parts), split


def _call(path: str, load: Any, *arguments: str) -> Any:
    """Calls a function of ``datasets`` and converts its errors to InputError."""
    try:
        return load(*arguments)
    except Exception as error:  # of any library that datasets uses
        raise InputError(f"{path}: cannot be loaded ({reason(error)[:300]})") from None


def _one_split(path: str, found: dict[str, Any], split: str) -> Any:
    """Returns the named split, or the only one. Raises InputError if it does not exist or is ambiguous."""
    how = f"{path.partition('@')[0]}@NAME" if path.startswith(PREFIX) else f"{path}/NAME"
    if not split and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        asked = f"no split {split!r}" if split else "several splits"
        raise InputError(f"{path}: {asked}; give one of {', '.join(found)}, as in {how}")
    return found[split]
