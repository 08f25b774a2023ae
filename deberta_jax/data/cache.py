"""Tokenised data kept on disk under the hash of what made them, and mapped into memory when wanted again."""

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
    """Returns the features that ``make`` gives, from disk if this identity (JSON) has been made before.

    A directory appears whole, in one rename, so that processes may race; arrays come back as memory maps. Without a
    directory, or with one that cannot be used, the features are made anew and kept in memory; the log says so.
    """
    if directory is None:
        _log.warning("no home directory: tokens are not kept for the next run; set XDG_CACHE_HOME to keep them")
        return make()
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    place = directory / "tokens" / key
    try:
        if place.is_dir():
            return _read(place)
    except (OSError, ValueError, TypeError, EOFError) as error:
        _log.warning("%s: cannot be read (%s); the tokens are made anew", place, " ".join(str(error).split()))
        with contextlib.suppress(OSError):
            storage.remove(place)
    features = make()
    try:
        _write(place, features)
        return _read(place)
    except OSError as error:
        _log.warning("tokens are not kept for the next run: %s", storage.explain(error))
        return features


def _write(place: Path, features: Features) -> None:
    with storage.made_once(place) as stage:
        rest = {}
        for field in dataclasses.fields(features):
            value = getattr(features, field.name)
            if isinstance(value, np.ndarray):
                with storage.writing(stage / f"{field.name}.npy") as file:
                    np.save(file, value)
            else:
                rest[field.name] = value
        storage.write_json(stage / "rest.json", rest)


def _read(place: Path) -> Features:
    rest = storage.read_json(place / "rest.json")
    arrays = {path.stem: storage.mapped_npy(path) for path in storage.files_in(place, "*.npy")}
    return Features(**(rest | arrays))
