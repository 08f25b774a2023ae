"""Caches tokenised data on disk, under a hash of everything that determines them."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deberta_jax import storage
from deberta_jax.data.feature_checks import Bounds, check_features
from deberta_jax.data.features import Features
from deberta_jax.errors import InputError

_log = logging.getLogger(__name__)

_REST = "rest.json"
_LISTED = "digests_are_listed"  # entries of older versions have no digests, and not this field
_FIELDS = {field.name: field.type for field in dataclasses.fields(Features)}


def cached_features(
    identity: Any, make: Callable[[], Features], directory: Path | None, bounds: Bounds = Bounds()
) -> Features:
    """Returns the features that ``make`` computes, from the cache if it has them.

    An entry of the cache appears in one rename, so several processes can write it at once. Its files are compared with
    their digests, and its features are checked; an entry that is damaged is made anew. Cached arrays are mapped into
    memory. If the cache cannot be used, a warning is logged and the features are kept in memory.

    Args:
      identity: a JSON value that determines the features.
      make: computes the features.
      directory: the directory of the cache; None: there is none.
      bounds: within which the features are.
    """
    if directory is None:
        _log.warning("no home directory: tokens are not kept for the next run; set XDG_CACHE_HOME to keep them")
        return make()
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    entry = storage.CacheEntry(directory / "tokens" / key, _is_older)

    def read(path: Path, names: frozenset[str]) -> Features:
        features = _read(path, names)
        check_features(features, bounds)
        return features

    found = entry.read(read)
    if found is not None:
        return found
    features = make()
    try:
        with entry.making() as stage:
            _write(stage, features)
    except OSError as error:
        _log.warning("tokens are not kept for the next run: %s", storage.explain(error))
        return features
    found = entry.read(read)
    return features if found is None else found


def _write(directory: Path, features: Features) -> None:
    """Writes each array as ``.npy`` and everything else as JSON."""
    rest: dict[str, Any] = {_LISTED: True}
    for name in _FIELDS:
        value = getattr(features, name)
        if isinstance(value, np.ndarray):
            with storage.writing(directory / f"{name}.npy") as file:
                np.save(file, value)
        else:
            rest[name] = value
    storage.write_json(directory / _REST, rest)


def _read(directory: Path, names: frozenset[str]) -> Features:
    """Reads what ``_write`` wrote, with arrays mapped into memory. Raises many errors for files of another form."""
    rest = storage.read_record(directory / _REST, {"level": str, "choices": int, "cut": int})
    arrays: dict[str, Any] = {Path(name).stem: storage.mapped_npy(directory / name) for name in sorted(names - {_REST})}
    rest.pop(_LISTED, None)
    unknown = sorted({*rest, *arrays} - set(_FIELDS)) + sorted(set(rest) & set(arrays))
    if unknown:
        raise InputError(f"holds the unknown field {unknown[0]!r}")
    return Features(**(rest | arrays))


def _is_older(directory: Path) -> bool:
    """Returns whether an older version, which listed no digests, wrote an entry. Raises InputError if it is damaged."""
    return _LISTED not in storage.read_json_object(directory / _REST)
