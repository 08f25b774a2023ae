"""Caches tokenised data on disk, under a hash of everything that determines them."""

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deberta_jax import storage
from deberta_jax.data.features import Features

_log = logging.getLogger(__name__)


def cached_features(identity: Any, make: Callable[[], Features], directory: Path | None) -> Features:
    """Returns the features that ``make`` computes, from the cache if it has them.

    An entry of the cache appears in one rename, so several processes can write it at once. Cached arrays are mapped
    into memory. If the cache cannot be used, a warning is logged and the features are kept in memory.

    Args:
      identity: a JSON value that determines the features.
      make: computes the features.
      directory: the directory of the cache; None: there is none.
    """
    if directory is None:
        _log.warning("no home directory: tokens are not kept for the next run; set XDG_CACHE_HOME to keep them")
        return make()
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    entry = directory / "tokens" / key
    try:
        if entry.is_dir():
            return _read(entry)
    except (OSError, ValueError, TypeError, EOFError) as error:
        _log.warning("%s: cannot be read (%s); the tokens are made anew", entry, " ".join(str(error).split()))
        with contextlib.suppress(OSError):
            storage.remove(entry)
    features = make()
    try:
        _write(entry, features)
        return _read(entry)
    except OSError as error:
        _log.warning("tokens are not kept for the next run: %s", storage.explain(error))
        return features


def _write(directory: Path, features: Features) -> None:
    """Writes each array as ``.npy`` and everything else as JSON."""
    with storage.made_once(directory) as stage:
        rest = {}
        for field in dataclasses.fields(features):
            value = getattr(features, field.name)
            if isinstance(value, np.ndarray):
                with storage.writing(stage / f"{field.name}.npy") as file:
                    np.save(file, value)
            else:
                rest[field.name] = value
        storage.write_json(stage / "rest.json", rest)


def _read(directory: Path) -> Features:
    """Reads what ``_write`` wrote, with arrays mapped into memory."""
    rest = storage.read_json(directory / "rest.json")
    arrays = {path.stem: storage.mapped_npy(path) for path in storage.files_in(directory, "*.npy")}
    return Features(**(rest | arrays))
