"""Reads spm.model. The library checks most of it; what it does not check is checked here before it gets the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.text.added import SPECIALS
from deberta_jax.text.charsmap import check_charsmap

# The largest published vocabulary has a million pieces. The library needs about 100 bytes for an empty one.
MOST_PIECES = 1 << 20
# Limits the other parts (how the model was trained, samples), which the library copies into many small objects.
MOST_OTHER = 1 << 22
_PIECE, _NORMALIZERS, _CHARSMAP = 1, (3, 5), 2
_PIECE_TAG = _PIECE << 3 | 2


def read_model(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Loads a SentencePiece model.

    Raises:
        InputError: the file is none, or is larger than any.
    """
    data = storage.read_bytes(path, storage.LARGE)
    try:
        pieces, others = _parts(data)
        if not pieces:
            raise ValueError("no pieces")
        tables = [table for number, value in others if number in _NORMALIZERS for table in _values(value, _CHARSMAP)]
    except (ValueError, IndexError):
        raise InputError(f"{path} is not a SentencePiece model; fetch it again") from None
    if pieces > MOST_PIECES or sum(len(value) for _, value in others) - sum(map(len, tables)) > MOST_OTHER:
        raise InputError(f"{path} has more pieces, or a longer description, than any model; fetch it again")
    for table in tables:
        check_charsmap(str(path), table)
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=data)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path} is not a SentencePiece model; fetch it again") from error


def _parts(data: bytes) -> tuple[int, list[tuple[int, bytes]]]:
    """Counts the pieces of a model, and returns the number and the bytes of its other parts.

    Raises:
        ValueError, IndexError: the file is not the protobuf message of a model.
    """
    pieces, others, at, end = 0, [], 0, len(data)
    while at < end:
        # Nearly all parts are pieces of less than 128 bytes.
        while at < end - 1 and pieces <= MOST_PIECES and data[at] == _PIECE_TAG and (size := data[at + 1]) < 0x80:
            at += 2 + size
            pieces += 1
        if at < end:
            number, value, at = _field(data, at)
            if number == _PIECE:
                pieces += 1
            else:
                others.append((number, value))
        if pieces > MOST_PIECES or len(others) > MOST_PIECES:
            break
    if at > end:
        raise ValueError("cut off")
    return pieces, others


def _values(message: bytes, wanted: int) -> Iterator[bytes]:
    """Yields the values of one field of a protobuf message. Raises ValueError or IndexError."""
    at = 0
    while at < len(message):
        number, value, at = _field(message, at)
        if number == wanted:
            yield value


def _field(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Returns the number and the bytes (b"" for a number) of the field at an offset, and the offset after it."""
    tag, at = _varint(data, at)
    kind, value = tag & 7, b""
    if kind == 0:
        _, at = _varint(data, at)
    elif kind in (1, 5):
        at += 8 if kind == 1 else 4
    elif kind == 2:
        size, at = _varint(data, at)
        value, at = data[at : at + size], at + size
    else:
        raise ValueError(f"wire type {kind}")
    if at > len(data):
        raise ValueError("cut off")
    return tag >> 3, value, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")


def special_pieces(processor: sentencepiece.SentencePieceProcessor) -> dict[str, int]:
    """Returns the ids of the special tokens that are pieces of the model."""
    found = {name: processor.piece_to_id(name) for name in SPECIALS}
    return {name: index for name, index in found.items() if processor.id_to_piece(index) == name}


def ordinary_piece(processor: sentencepiece.SentencePieceProcessor, index: int) -> str | None:
    """Returns the piece with an id that text can become, or None: for special, unknown and unused pieces too."""
    if index >= processor.get_piece_size():
        return None
    if processor.is_control(index) or processor.is_unknown(index) or processor.is_unused(index):
        return None
    return processor.id_to_piece(index)
