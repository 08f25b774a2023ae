"""Reads `bpe_encoder.bin`, the vocabulary of Microsoft's v1 release, without torch.

Torch saved the file, but it contains only plain containers: `encoder` (GPT-2's piece -> GPT-2's id), `vocab` (merge
pairs) and `dict_map` (entries of GPT-2's id as a string and a count; their order gives DeBERTa's ids from 4 on).
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from deberta_jax import storage
from deberta_jax.errors import InputError, brief
from deberta_jax.pickles import archive, machine
from deberta_jax.pickles.names import Global
from deberta_jax.pickles.values import Placeholder

# The value of the first of the five pickles in a torch file older than the zip format.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
FIRST_ID = 4
_COUNTER = Global("collections", "Counter")
# The longest piece of GPT-2 has 128 bytes.
_LONGEST_PIECE = 1000


def read_bpe_encoder(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Reads the vocabulary without the special tokens.

    Returns:
        A mapping of pieces to DeBERTa's ids, and the merges in order.

    Raises:
        InputError: the file is not of this form, or would run code.
    """
    try:
        with storage.mapped(path) as data:
            content = _plain(_content(data), dict)
        names = {_id(index): _piece(piece) for piece, index in _plain(content["encoder"], dict).items()}
        ordered = [_piece(_plain(entry, tuple)[0]) for entry in _plain(content["dict_map"], list)]
        merges = [_pair(pair) for pair in _plain(content["vocab"], list)]
    except KeyError as error:
        raise InputError(f"{path} is not the bpe_encoder.bin of a DeBERTa v1 release: it has no {error}") from None
    except (archive.ArchiveError, ValueError, IndexError) as error:
        raise InputError(f"{path} is not the bpe_encoder.bin of a DeBERTa v1 release: {brief(error, 200)}") from None
    return {names.get(entry, entry): FIRST_ID + i for i, entry in enumerate(ordered)}, merges


def _content(data: mmap.mmap) -> Any:
    """Returns the object that torch saved, in the zip format or the older one."""
    if data[:2] == b"PK":
        entries = archive.read_entries(data)
        program = archive.read_small(data, entries[f"{archive.find_root(entries)}data.pkl"], "data.pkl", storage.LARGE)
        return machine.run(program).value
    first, position, _ = machine.run(data)
    if first != LEGACY_MAGIC:
        return first
    for _ in ("protocol version", "system"):
        position = machine.run(data, position, most=1000).end
    return machine.run(data, position).value


def _plain(value: Any, kind: type) -> Any:
    """Returns a value that is a container of a kind, or a Counter of it. Raises ValueError if it is neither."""
    if isinstance(value, Global):
        raise ValueError(f"{value.module}.{value.name} is not a plain container")
    if isinstance(value, Placeholder) and value.kind == _COUNTER:
        arguments = value.parts[0] if value.parts else ()
        value = arguments[0] if isinstance(arguments, tuple) and arguments else {}
    if not isinstance(value, kind | list if kind is tuple else kind):
        raise ValueError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _id(index: Any) -> str:
    if type(index) is not int or not 0 <= index < 2**31:
        raise ValueError("an id that is no number of a piece")
    return str(index)


def _piece(piece: Any) -> str:
    if not isinstance(piece, str) or len(piece) > _LONGEST_PIECE:
        raise ValueError("a piece that is no short text")
    return piece


def _pair(pair: Any) -> tuple[str, str]:
    first, second = _plain(pair, tuple)
    return _piece(first), _piece(second)
