"""v2 and v3: SentencePiece itself decides pieces and normalisation.

Source of the rules: the SentencePiece tokenizer of microsoft/DeBERTa. `do_lower_case` lowers the text first;
`split_by_punct` cuts it at every punctuation character and encodes each part by itself.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import sentencepiece

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.text.added import SPECIALS, AddedTokens, write_json
from deberta_jax.text.encoding import concatenate, lengths_of
from deberta_jax.text.tokenizer import Tokenizer

SPACE = "\u2581"  # SentencePiece's stand-in for a space
# Fewer characters than this are encoded sooner than threads are started.
PARALLEL_FROM = 20_000


class SentencePieceTokenizer(Tokenizer):
    """Pieces from `spm.model`.

    Args:
        processor: the SentencePiece model.
        added: special and added tokens with their ids.
        do_lower_case: lower the text first.
        split_by_punct: cut at punctuation first.
        rule: what to call this in `rule`.
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
        self._size, self._lead = _piece_lengths(processor)

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
        # All normalised texts as one string, each with one character after it. The pieces of a text are consecutive
        # slices of it, and `origin` knows the character of the texts, each also one longer, that each slice begins at.
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
        """Characters of normalised text in each piece, and how many of these are leading spaces."""
        sizes, leads = self._size[ids], self._lead[ids]
        unknown = np.flatnonzero(ids == self.unk_id)
        if len(unknown):
            # An unknown piece is as long as what it stands for, which only its surface tells.
            of_text = np.searchsorted(np.cumsum(lengths), unknown, "right")
            surfaces = {i: self._processor.encode(texts[i], out_type=str) for i in set(of_text.tolist())}
            begin = np.cumsum(lengths) - lengths
            found = [surfaces[i][k - begin[i]] for i, k in zip(of_text.tolist(), unknown.tolist(), strict=True)]
            sizes[unknown] = lengths_of(found)
            leads[unknown] = [len(piece) - len(piece.lstrip(SPACE)) for piece in found]
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
        return None if index == self._processor.unk_id() else index

    def _identity(self) -> Iterable[bytes]:
        return [self._processor.serialized_model_proto(), bytes([self.do_lower_case, self.split_by_punct])]

    def save(self, directory: str | Path) -> None:
        """Write spm.model, added_tokens.json and tokenizer_config.json."""
        directory = Path(directory)
        storage.make_directory(directory)
        storage.write_bytes(directory / "spm.model", self._processor.serialized_model_proto())
        # Special tokens that are pieces of the model need no entry; [MASK], which is none in a released one, does.
        beside = {t.content: t.id for t in self.added.tokens if self._processor.piece_to_id(t.content) != t.id}
        write_json(directory / "added_tokens.json", beside)
        config = {
            "do_lower_case": self.do_lower_case,
            "split_by_punct": self.split_by_punct,
            "tokenizer_class": "DebertaV2Tokenizer",
            "vocab_type": "spm",
        }
        write_json(directory / "tokenizer_config.json", config | self.added.config())


def _piece_lengths(processor: sentencepiece.SentencePieceProcessor) -> tuple[np.ndarray, np.ndarray]:
    """Of each piece: its length in characters of normalised text, and how many of these are leading spaces.

    The bytes of one character count as one character for the first of them and as none for the others.
    """
    indices = list(range(processor.get_piece_size()))
    pieces = processor.id_to_piece(indices)
    sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
    leads = np.array([len(piece) - len(piece.lstrip(SPACE)) for piece in pieces])
    for index in np.flatnonzero(processor.is_byte(indices)):
        sizes[index] = not 0x80 <= int(pieces[index][1:-1], 16) < 0xC0
    return sizes, leads


def _unlowered(text: str, origin: list[int]) -> list[int]:
    """Positions in `text.lower()` -> positions in `text`: U+0130 and a few more are two characters in lower case."""
    places = [i for i, character in enumerate(text) for _ in character.lower()]
    return [*map([*places, len(text)].__getitem__, origin)]


def _edges(normal: str, origin: np.ndarray) -> np.ndarray:
    """[len(normal)]: the place in the text where a piece ends and the next begins, cut before character k of `normal`.

    Inside a group of characters that come from one character of the text the cut falls after that character: it
    belongs to the first piece that holds any of the group. A space at the head of a group does not count.
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
    """ASCII that is neither letter, digit, space nor control, and Unicode category P."""
    code = ord(character)
    ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_mark or unicodedata.category(character).startswith("P")


def read_model(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Raises InputError where the file is no SentencePiece model."""
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path} is not a SentencePiece model; fetch it again") from error


def special_pieces(processor: sentencepiece.SentencePieceProcessor) -> dict[str, int]:
    """Ids of those of the five special tokens that are pieces."""
    found = {name: processor.piece_to_id(name) for name in SPECIALS}
    return {name: index for name, index in found.items() if processor.id_to_piece(index) == name}
