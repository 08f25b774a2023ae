"""Implements the tokenizer of DeBERTa v2 and v3 with SentencePiece, which does normalisation and segmentation.

The rules are those of the SentencePiece tokenizer of microsoft/DeBERTa: `do_lower_case` lowers the text first;
`split_by_punct` splits it at every punctuation character and encodes each part separately.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import chain

import numpy as np
import sentencepiece

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.text.added import AddedTokens, write_tokenizer_json
from deberta_jax.text.encoding import concatenate, lengths_of
from deberta_jax.text.tokenizer import Tokenizer

SPACE = "\u2581"  # SentencePiece's stand-in for a space
# With fewer characters, starting threads takes longer than encoding on one.
PARALLEL_FROM = 20_000


class SentencePieceTokenizer(Tokenizer):
    """Tokenizes with a SentencePiece model.

    Args:
        processor: the SentencePiece model.
        added: special and other added tokens.
        do_lower_case: whether to lower the text first.
        split_by_punct: whether to split the text at punctuation first.
        rule: description for the attribute `rule`.
    """

    kind = "spm"

    def __init__(
        self,
        processor: sentencepiece.SentencePieceProcessor,
        added: AddedTokens,
        *,
        do_lower_case: bool,
        split_by_punct: bool,
        rule: str,
    ):
        super().__init__(added)
        self.do_lower_case = do_lower_case
        self.split_by_punct = split_by_punct
        self.rule = rule
        self._processor = processor
        self._threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.vocab_size = max(processor.get_piece_size(), max(added.by_id) + 1)
        self._size, self._lead, self._unknown = _piece_lengths(processor)

    def _encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if self.do_lower_case:
            texts = [text.lower() for text in texts]
        if sum(map(len, texts)) >= PARALLEL_FROM:
            rows = self._processor.encode(texts, out_type="numpy", num_threads=self._threads)
            return concatenate(rows), lengths_of(rows)
        rows = list(map(self._processor.encode, texts))
        lengths = lengths_of(rows)
        return np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths

    def _spans(self, texts: list[str], ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        # The normalised texts are joined to one string, each followed by one more character. The pieces of a text are
        # consecutive slices of it. `origins` maps each of its characters to a character of the texts, which are also
        # counted as one longer.
        lowered = [text.lower() for text in texts] if self.do_lower_case else texts
        normals, origins = [], []
        for text, lower in zip(texts, lowered, strict=True):
            normal, origin = self._processor.normalize(lower, with_offsets=True)
            normals.append(normal)
            origins.append(origin if len(lower) == len(text) else _unlowered(text, origin))
        sizes, leads = self._lengths(lowered, ids, lengths)
        owner = np.repeat(np.arange(len(texts)), lengths)
        expected, have = lengths_of(normals), np.bincount(owner, sizes, len(texts))
        if (expected != have).any():
            raise RuntimeError("the pieces of a text do not add up to its normalised form")
        starts_at = np.cumsum(lengths_of(texts) + 1) - lengths_of(texts) - 1
        flat = np.fromiter(chain.from_iterable(origins), np.int64, int(expected.sum()) + len(texts))
        edge = _edges("".join(f"{normal}\n" for normal in normals), flat + np.repeat(starts_at, expected + 1))
        ends = np.cumsum(sizes) + owner
        starts = np.minimum(ends - sizes + leads, ends)
        return (np.stack([edge[starts], edge[ends]], axis=1) - starts_at[owner][:, None]).astype(np.int32)

    def _lengths(self, texts: list[str], ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns for each piece its length in characters of normalised text and the number of leading spaces."""
        sizes, leads = self._size[ids], self._lead[ids]
        unknown = np.flatnonzero(self._unknown[ids])
        if len(unknown):
            # An unknown piece is as long as the characters it stands for, which its surface form shows.
            of_text = np.searchsorted(np.cumsum(lengths), unknown, "right")
            surfaces = {i: self._processor.encode(texts[i], out_type=str) for i in set(of_text.tolist())}
            begin = np.cumsum(lengths) - lengths
            surface = [surfaces[i][k - begin[i]] for i, k in zip(of_text.tolist(), unknown.tolist(), strict=True)]
            sizes[unknown] = lengths_of(surface)
            leads[unknown] = [len(piece) - len(piece.lstrip(SPACE)) for piece in surface]
        return sizes, leads

    def _must_cut(self, texts: list[str]) -> bool:
        return self.split_by_punct or super()._must_cut(texts)

    def _cuts(self, text: str) -> list[int]:
        if not self.split_by_punct:
            return []
        marks = [i for i, character in enumerate(text) if is_punctuation(character)]
        return sorted({edge for i in marks for edge in (i, i + 1)} - {0, len(text)})

    def _decode(self, ids: list[int]) -> str:
        text = self._processor.decode(ids)
        return f" {text}" if self._piece(ids[0]).startswith(SPACE) else text

    def _trim(self, text: str) -> str:
        return text.removeprefix(" ")

    def _piece(self, index: int) -> str:
        if index >= self._processor.get_piece_size():
            raise InputError(f"id {index} lies between the pieces and the added tokens and is neither")
        return self._processor.id_to_piece(index)

    def _index(self, piece: str) -> int | None:
        index = self._processor.piece_to_id(piece)
        return index if self._processor.id_to_piece(index) == piece else None

    def _identity(self) -> Iterable[bytes]:
        return [self._processor.serialized_model_proto(), bytes([self.do_lower_case, self.split_by_punct])]

    def save(self, directory: str | storage.AnyPath) -> None:
        """Writes spm.model, added_tokens.json and tokenizer_config.json."""
        directory = storage.as_path(directory)
        storage.make_directory(directory)
        storage.write_bytes(directory / "spm.model", self._processor.serialized_model_proto())
        # Special tokens that are pieces of the model need no entry. [MASK] is no piece of a released model.
        beside = {t.content: t.id for t in self.added.tokens if self._processor.piece_to_id(t.content) != t.id}
        write_tokenizer_json(directory / "added_tokens.json", beside)
        config = {
            "do_lower_case": self.do_lower_case,
            "split_by_punct": self.split_by_punct,
            "tokenizer_class": "DebertaV2Tokenizer",
            "vocab_type": "spm",
        }
        write_tokenizer_json(directory / "tokenizer_config.json", config | self.added.config())


def _piece_lengths(processor: sentencepiece.SentencePieceProcessor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns for each piece its length in characters of normalised text, the number of leading spaces, and its kind.

    Byte pieces of one character count as one character for the first byte and as none for the others.

    Returns:
        Two int64 [number of pieces], and bool [number of pieces]: whether the piece stands for unknown characters. The
        library's `unk_id` looks for a name, which may be another piece's.
    """
    indices = list(range(processor.get_piece_size()))
    pieces = processor.id_to_piece(indices)
    sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
    leads = np.array([len(piece) - len(piece.lstrip(SPACE)) for piece in pieces])
    for index in np.flatnonzero(processor.is_byte(indices)):
        sizes[index] = not 0x80 <= int(pieces[index][1:-1], 16) < 0xC0
    return sizes, leads, np.asarray(processor.is_unknown(indices), bool)


def _unlowered(text: str, origin: list[int]) -> list[int]:
    """Converts positions in `text.lower()` to positions in `text`.

    They differ after U+0130 and a few other characters, which are two characters in lower case.
    """
    positions = [i for i, character in enumerate(text) for _ in character.lower()]
    return [*map([*positions, len(text)].__getitem__, origin)]


def _edges(normal: str, origin: np.ndarray) -> np.ndarray:
    """Computes the position in the text of each possible boundary between two pieces.

    A character of the text may become several characters of normalised text. A boundary between these falls after the
    character, which so belongs to the first piece that holds any part of it; a leading space is no such part.

    Args:
        normal: normalised text.
        origin: int64 [len(normal)], the character of the text from which each character of `normal` comes.

    Returns:
        int64 [len(normal)]: the position in the text of a boundary before character k of `normal`.
    """
    solid = np.frombuffer(normal.encode("utf-32-le"), np.uint32) != ord(SPACE)
    starts = np.append(True, origin[1:] != origin[:-1])[: len(origin)]
    before = np.cumsum(solid) - solid
    group = np.maximum.accumulate(np.where(starts, np.arange(len(origin)), 0))
    inside = np.flatnonzero(before > before[group])
    edge = origin.copy()
    heads = np.flatnonzero(starts)
    edge[inside] = origin[heads[np.searchsorted(heads, inside, "right")]]
    return edge


@cache
def is_punctuation(character: str) -> bool:
    """Returns whether a character is ASCII but no letter, digit, space or control, or has Unicode category P."""
    code = ord(character)
    ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_mark or unicodedata.category(character).startswith("P")
