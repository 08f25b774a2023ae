"""v2 and v3: SentencePiece itself decides pieces and normalisation.

Source of the rules: the SentencePiece tokenizer of microsoft/DeBERTa. `do_lower_case` lowers the text first;
`split_by_punct` cuts it at every punctuation character and encodes each part by itself.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import sentencepiece

from deberta_jax.errors import InputError
from deberta_jax.text.added import AddedTokens, write_json
from deberta_jax.text.tokenizer import Tokenizer

SPACE = "\u2581"  # SentencePiece's stand-in for a space
# Fewer characters than this are encoded sooner than a second thread is started.
PARALLEL_FROM = 20_000


class SentencePieceTokenizer(Tokenizer):
    """Pieces from `spm.model`.

    Args:
        model: the serialized SentencePiece model.
        added: special and added tokens with their ids.
        do_lower_case: lower the text first.
        split_by_punct: cut at punctuation first.
        rule: what to call this in `rule`.
    """

    kind = "spm"

    def __init__(self, model: bytes, added: AddedTokens, *, do_lower_case: bool, split_by_punct: bool, rule: str):
        super().__init__(added)
        self.model = model
        self.do_lower_case = do_lower_case
        self.split_by_punct = split_by_punct
        self.rule = rule
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.vocab_size = max(self._processor.get_piece_size(), max(added.by_id) + 1)
        self._size, self._lead = _piece_lengths(self._processor)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        if self.do_lower_case:
            texts = [text.lower() for text in texts]
        if len(texts) == 1:
            return [self._processor.encode(texts[0], out_type="numpy")]
        threads = self._threads if sum(map(len, texts)) >= PARALLEL_FROM else 1
        return self._processor.encode(texts, out_type="numpy", num_threads=threads)

    def _spans(self, text: str, ids: np.ndarray) -> np.ndarray:
        # `origin[k]` is the character of the text that character k of the normalised text comes from. The pieces are
        # consecutive slices of the normalised text, so their lengths say which characters each one stands for.
        lowered = text.lower() if self.do_lower_case else text
        normal, origin = self._processor.normalize(lowered, with_offsets=True)
        origin = np.array(origin, np.int64)
        if len(lowered) != len(text):
            # A few capitals (such as U+0130) are two characters in lower case.
            widths = [len(character.lower()) for character in text]
            origin = np.append(np.repeat(np.arange(len(text)), widths), len(text))[origin]
        sizes, leads = self._size[ids], self._lead[ids]
        if self.unk_id in ids:
            sizes, leads = self._unknown_lengths(lowered, ids, sizes, leads)
        ends = np.cumsum(sizes)
        starts = np.minimum(ends - sizes + leads, ends)
        if len(ends) and ends[-1] != len(normal):
            raise RuntimeError(f"the pieces add up to {ends[-1]} characters, the normalised text to {len(normal)}")
        edge = _edges(normal, origin)
        return np.stack([edge[starts], edge[ends]], axis=1).astype(np.int32)

    def _unknown_lengths(self, text: str, ids: np.ndarray, sizes: np.ndarray, leads: np.ndarray):
        """An unknown piece is as long as what it stands for, which only its surface tells."""
        surfaces = self._processor.encode(text, out_type=str)
        unknown = np.flatnonzero(ids == self.unk_id)
        sizes, leads = sizes.copy(), leads.copy()
        sizes[unknown] = [len(surfaces[i]) for i in unknown]
        leads[unknown] = [len(surfaces[i]) - len(surfaces[i].lstrip(SPACE)) for i in unknown]
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
        return [self.model, bytes([self.do_lower_case, self.split_by_punct])]

    def save(self, directory: str | Path) -> None:
        """Write spm.model, added_tokens.json and tokenizer_config.json."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "spm.model").write_bytes(self.model)
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


def _edges(normal: str, origin: np.ndarray) -> np.ndarray:
    """[len(normal) + 1]: where in the text a piece ends and the next one begins, cut before character k of `normal`.

    Inside a group of characters that come from one character of the text the cut falls after that character: it
    belongs to the first piece that holds any of the group. A space at the head of a group does not count.
    """
    space = np.frombuffer(normal.encode("utf-32-le"), np.uint32) == ord(SPACE)
    inside = (origin[1:] == origin[:-1]) & ~space
    if not inside.any():
        return origin
    changes = np.append(np.flatnonzero(origin[1:] != origin[:-1]) + 1, len(normal))
    after = changes[np.minimum(np.searchsorted(changes, np.arange(1, len(origin)), "right"), len(changes) - 1)]
    return np.append(origin[:1], np.where(inside, origin[after], origin[1:]))


@cache
def is_punctuation(character: str) -> bool:
    """ASCII that is neither letter, digit, space nor control, and Unicode category P."""
    code = ord(character)
    ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_mark or unicodedata.category(character).startswith("P")


def piece_ids(model: bytes, path: Path) -> tuple[dict[str, int], int]:
    """Ids of the pieces written in brackets, as special tokens are, and the number of pieces.

    Raises:
        InputError: `model`, read from `path`, is no SentencePiece model.
    """
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path} is not a SentencePiece model; fetch it again") from error
    count = processor.get_piece_size()
    pieces = processor.id_to_piece(list(range(count)))
    return {piece: index for index, piece in enumerate(pieces) if piece.startswith("[")}, count
