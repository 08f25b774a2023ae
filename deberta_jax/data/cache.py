"""Tokenised data kept on disk under the hash of what made them, and mapped into memory when wanted again."""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deberta_jax.data.features import Features


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/deberta_jax``, by default in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deberta_jax"


def cached_features(identity: Any, make: Callable[[], Features], directory: Path) -> Features:
    """The features that ``make`` gives, from disk if this identity (JSON) has been made before.

    A directory appears whole, in one rename, so that processes may race; arrays come back as memory maps.
    """
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    place = directory / "tokens" / key
    if not place.is_dir():
        _write(place, make())
    return _read(place)


def _write(place: Path, features: Features) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".partial-", dir=place.parent))
    try:
        rest = {}
        for field in dataclasses.fields(features):
            value = getattr(features, field.name)
            if isinstance(value, np.ndarray):
                np.save(stage / f"{field.name}.npy", value)
            else:
                rest[field.name] = value
        (stage / "rest.json").write_text(json.dumps(rest), encoding="utf-8")
        try:
            os.rename(stage, place)
        except OSError:
            if not place.is_dir():  # otherwise another process was first, with the same
                raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _read(place: Path) -> Features:
    rest = json.loads((place / "rest.json").read_text(encoding="utf-8"))
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in place.glob("*.npy")}
    return Features(**(rest | arrays))
