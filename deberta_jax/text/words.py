"""Relates pieces to the characters and words of a text as transformers' tokenizers do."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import pre_tokenizers

from deberta_jax.text.bpe import BYTES
from deberta_jax.text.tokenizer import Tokenizer

_BLANK = "▁"
_WORD = re.compile(r"\S+")


def spans_with_blanks(
    tokenizer: Tokenizer, text: str, ids: Sequence[int], spans: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Returns the characters of each token as transformers counts them: with the blank before a word.

    A piece that begins with a blank includes the character before it, and a piece that begins within a character the
    whole character.

    Args:
        tokenizer: the tokenizer.
        text: the text.
        ids: the tokens of the text, without special tokens.
        spans: their characters as the tokenizer returns them (`offset_mapping`).
    """
    find = _span_of_bytes if tokenizer.kind == "bpe" else _span_of_piece
    out = []
    for index, (start, end) in zip(ids, spans, strict=True):
        known = index in tokenizer.added.by_id
        out.append((start, end) if known else find(tokenizer.id_to_token(index), text, start, end))
    return out


def _span_of_piece(piece: str, text: str, start: int, end: int) -> tuple[int, int]:
    """Returns the span of a piece of SentencePiece."""
    if not piece.startswith(_BLANK):
        return start, end
    if start and text[start - 1].isspace():
        return start - 1, end
    # The blank was inserted. On its own it is counted as the character that follows.
    return (start, min(start + 1, len(text))) if piece == _BLANK else (start, end)


def _span_of_bytes(piece: str, text: str, start: int, end: int) -> tuple[int, int]:
    """Returns the span of a piece of byte-level BPE."""
    raw = bytes(BYTES[character] for character in piece)
    if raw[0] & 0xC0 == 0x80:  # the rest of a character whose first byte is in the piece before
        return max(start - 1, 0), end
    decoded = raw.decode(errors="ignore")
    return max(start - (len(decoded) - len(decoded.lstrip())), 0), end


def words_of(tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
    """Returns the first and last (exclusive) character of each word of a text, without blanks.

    For SentencePiece words are separated by blanks. For byte-level BPE they are those of GPT-2's expression, which
    also separates punctuation.
    """
    if tokenizer.kind != "bpe":
        return [found.span() for found in _WORD.finditer(text)]
    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    spans = [(end - len(text[start:end].lstrip()), end) for _, (start, end) in split]
    return [(start, end) for start, end in spans if start < end]


def text_of_pieces(tokenizer: Tokenizer, ids: Sequence[int], texts: Sequence[str]) -> str:
    """Returns the text that tokens stand for. In the place of [UNK] it has the token's own characters.

    Args:
        tokenizer: the tokenizer.
        ids: the tokens.
        texts: the characters of each token.
    """
    out, known = "", []
    for index, text in zip(ids, texts, strict=True):
        if index != tokenizer.unk_id:
            known.append(index)
            continue
        out += _decoded(tokenizer, known, out) + text
        known = []
    return out + _decoded(tokenizer, known, out)


def _decoded(tokenizer: Tokenizer, ids: Sequence[int], before: str) -> str:
    if not ids:
        return ""
    blank = before and tokenizer.kind != "bpe" and tokenizer.id_to_token(ids[0]).startswith(_BLANK)
    return (" " if blank else "") + tokenizer.decode(list(ids), False)
