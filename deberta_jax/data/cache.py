"""Caches tokenised data on disk, under a hash of everything that determines them."""

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from deberta_jax import storage
from deberta_jax.data.feature_checks import Bounds, check_features
from deberta_jax.data.feature_parts import ARRAYS, JoinedFeatures, join_features
from deberta_jax.data.features import Features
from deberta_jax.errors import InputError

_log = logging.getLogger(__name__)

_REST = "rest.json"
_LISTED = "digests_are_listed"  # entries of older versions have no digests, and not this field
_FIELDS = {field.name: field.type for field in dataclasses.fields(Features)}


class TokenCache:
    """Names the features of a table in the cache.

    An entry of the cache appears in one rename, so several processes can write it at once. Its files are compared with
    their digests, and its features are checked; an entry that is damaged is made anew. Cached arrays are mapped into
    memory.

    Args:
      identity: a JSON value that determines the features.
      directory: the directory of the cache; None: there is none, which is logged.
      bounds: within which the features are.
    """

    def __init__(self, identity: Any, directory: Path | None, bounds: Bounds = Bounds()):
        self.directory, self.bounds = directory, bounds
        if directory is None:
            _log.warning("no home directory: tokens are not kept for the next run; set XDG_CACHE_HOME to keep them")
            return
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.entry = storage.CacheEntry(directory / "tokens" / key, _is_older)

    def read(self) -> Features | None:
        """Returns the features; None if the cache does not have them."""
        return None if self.directory is None else self.entry.read(self._read)

    def _read(self, path: Path, names: frozenset[str]) -> Features:
        features = _read(path, names)
        check_features(features, self.bounds)
        features.release()
        return features

    def write(self, make: Callable[[], Iterable[Features]]) -> bool:
        """Writes the features of consecutive parts of the table, which ``make`` computes. Memory has one at a time.

        Returns:
          Whether they are kept. If they cannot be, a warning is logged.
        """
        if self.directory is None:
            return False
        try:
            with self.entry.making() as stage:
                _write(stage, make())
        except OSError as error:
            _log.warning("tokens are not kept for the next run: %s", storage.explain(error))
            return False
        return True


def cached_features(
    identity: Any, make: Callable[[], Iterable[Features]], directory: Path | None, bounds: Bounds = Bounds()
) -> Features:
    """Returns the features that ``make`` computes, from the cache if it has them.

    If the cache cannot be used, a warning is logged and the features are kept in memory.

    Args:
      identity, directory, bounds: as for ``TokenCache``.
      make: computes the features of consecutive parts of the table.
    """
    cache = TokenCache(identity, directory, bounds)
    found = cache.read()
    if found is None and cache.write(make):
        found = cache.read()
    return join_features(make()) if found is None else found


def _write(directory: Path, parts: Iterable[Features]) -> None:
    """Writes each array as ``.npy`` and everything else as JSON."""
    with contextlib.ExitStack() as files:
        joined = JoinedFeatures(lambda name: files.enter_context(storage.writing(directory / f"{name}.npy")))
        for part in parts:
            joined.add(part)
        fields = joined.end()
    absent = {name: None for name in ARRAYS if name not in joined.arrays}
    storage.write_json(directory / _REST, {_LISTED: True, **absent, **fields})


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
