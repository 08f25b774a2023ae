"""Reads `bpe_encoder.bin`, the vocabulary of Microsoft's v1 release, without torch.

Torch saved the file, but it contains only plain containers: `encoder` (GPT-2's piece -> GPT-2's id), `vocab` (merge
pairs) and `dict_map` (entries of GPT-2's id as a string and a count; their order gives DeBERTa's ids from 4 on).
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

from deberta_jax import storage
from deberta_jax.errors import InputError

# The value of the first of the five pickles in a torch file older than the zip format.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
FIRST_ID = 4
CONTAINERS = {("collections", "OrderedDict"), ("collections", "Counter"), ("builtins", "set")}


class _ContainersOnly(pickle.Unpickler):
    """Reads pickles of plain containers and refuses all others, which could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in CONTAINERS:
            raise pickle.UnpicklingError(f"{module}.{name} is not a plain container")
        return super().find_class(module, name)


def read_bpe_encoder(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Reads the vocabulary without the special tokens.

    Returns:
        A mapping of pieces to DeBERTa's ids, and the merges in order.

    Raises:
        InputError: the file is not of this form, or would run code.
    """
    try:
        content = _load(storage.read_bytes(path, storage.LARGE))
        names = {str(index): piece for piece, index in content["encoder"].items()}
        ordered = [names.get(entry[0], entry[0]) for entry in content["dict_map"]]
        merges = [(str(first), str(second)) for first, second in content["vocab"]]
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not the bpe_encoder.bin of a DeBERTa v1 release: {error}") from error
    return {piece: FIRST_ID + i for i, piece in enumerate(ordered)}, merges


def _load(raw: bytes) -> Any:
    """Returns the object that torch saved, in the zip format or the older one."""
    if raw[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            name = next((n for n in archive.namelist() if n.endswith("data.pkl")), "data.pkl")
            return _ContainersOnly(io.BytesIO(archive.read(name))).load()
    stream = io.BytesIO(raw)
    first = _ContainersOnly(stream).load()
    if first != LEGACY_MAGIC:
        return first
    for _ in ("protocol version", "system"):
        _ContainersOnly(stream).load()
    return _ContainersOnly(stream).load()
