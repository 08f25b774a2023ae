"""Implements the tokenizer of DeBERTa v1: the byte-level BPE of GPT-2 with DeBERTa's ids.

GPT-2's regular expression splits a text into words; the space before a word belongs to the word. Each word becomes a
sequence of bytes, and neighbours are merged in the order of the merge list. There is no normalisation, and the case is
kept whatever `do_lower_case` says, as in the training code. [MASK] includes the space before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from deberta_jax import storage
from deberta_jax.errors import InputError, brief
from deberta_jax.text.added import AddedTokens, write_tokenizer_json
from deberta_jax.text.encoding import lengths_of
from deberta_jax.text.tokenizer import Tokenizer

# GPT-2's expression, restricted to ASCII text. With re.ASCII, \s leaves out \x1c to \x1f, as the original does.
WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
# With fewer characters, looking up words in a table on one core is faster than the library on two cores.
LOOK_UP_BELOW = 20_000
LONGEST_KNOWN = 64
MOST_KNOWN = 1 << 16
SPACES = np.array([i for i in range(0x3001) if chr(i).isspace()], np.uint32)


class ByteLevelTokenizer(Tokenizer):
    """Tokenizes by byte-level BPE from vocab.json and merges.txt.

    Args:
        vocab: piece -> id. Pieces spell bytes as GPT-2's printable characters ("Ġworld").
        merges: pairs of pieces in the order in which they are merged.
        added: special and other added tokens.
        add_prefix_space: whether a text that begins without a space gets one.
        rule: description for the attribute `rule`.

    Raises:
        InputError: a merge gives a piece that is not in `vocab`.
    """

    kind = "bpe"
    _word_prefix = " "

    def __init__(
        self,
        vocab: dict[str, int],
        merges: Sequence[tuple[str, str]],
        added: AddedTokens,
        *,
        add_prefix_space: bool,
        rule: str,
    ):
        super().__init__(added)
        self.vocab = vocab
        self.merges = list(merges)
        self.add_prefix_space = add_prefix_space
        self.rule = rule
        # The library looks up the piece of unknown bytes, which another file than vocab.json may declare.
        self._library = byte_level_bpe({"[UNK]": self.unk_id} | vocab, self.merges)
        self._pieces_by_id = {index: piece for piece, index in vocab.items()}
        self.vocab_size = max(max(self._pieces_by_id), max(added.by_id)) + 1
        # Number of bytes of each piece: one per character. [UNK] stands for one byte that the vocabulary lacks.
        self._size = np.ones(self.vocab_size, np.int64)
        for piece, index in vocab.items():
            self._size[index] = 1 if index == self.unk_id else len(piece)
        self._known: dict[str, list[int]] = {}

    def _encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        texts = self._prefixed(texts)
        if sum(map(len, texts)) < LOOK_UP_BELOW:
            ids = [self._look_up(text) if text.isascii() else self._library_ids(text) for text in texts]
        else:
            ids = [row.ids for row in self._library.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = lengths_of(ids)
        return np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())), lengths

    def _library_ids(self, text: str) -> list[int]:
        """Returns the ids of a text from the `tokenizers` library."""
        return self._library.encode(text, add_special_tokens=False).ids

    def _look_up(self, text: str) -> list[int]:
        """Returns the ids of an ASCII text, each word from the table of known words, which it extends."""
        words = WORDS.findall(text)
        ids = list(map(self._known.get, words))
        if None in ids:
            missing = {word for word, known in zip(words, ids, strict=True) if known is None}
            if max(map(len, missing)) > LONGEST_KNOWN:
                return self._library_ids(text)
            new = {word: self._library_ids(word) for word in missing}
            if len(self._known) + len(new) > MOST_KNOWN:
                self._known.clear()
            self._known.update(new)
            return [i for word, known in zip(words, ids, strict=True) for i in (new[word] if known is None else known)]
        return list(chain.from_iterable(ids))  # pyright: ignore[reportArgumentType]: none of them is None

    def _spans(self, texts: list[str], ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        # The texts are joined to one string, so the pieces are consecutive slices of its bytes. `origin` is the
        # character at which the text of each piece begins.
        padded = self._prefixed(texts)
        text = "".join(padded)
        sizes = lengths_of(padded)
        origin = np.repeat(np.cumsum(sizes) - lengths_of(texts), lengths)
        raw = np.frombuffer(text.encode(), np.uint8)
        ends = np.cumsum(self._size[ids])
        if len(ends) and ends[-1] != len(raw):
            raise RuntimeError(f"the pieces add up to {ends[-1]} bytes, the text to {len(raw)}")
        # begun[k] counts the characters whose first byte is before byte k. A character belongs to the piece that holds
        # its first byte.
        begun = np.append(0, np.cumsum((raw & 0xC0) != 0x80))
        last = begun[ends]
        first = np.minimum(after_space(text)[begun[ends - self._size[ids]]], last)
        return np.maximum(np.stack([first, last], axis=1) - origin[:, None], 0).astype(np.int32)

    def _prefixed(self, texts: list[str]) -> list[str]:
        if not self.add_prefix_space:
            return texts
        return [text if not text or text[0] == " " else f" {text}" for text in texts]

    def _decode(self, ids: list[int]) -> str:
        return b"".join(_bytes_of(self._piece(i)) for i in ids).decode("utf-8", errors="replace")

    def _trim(self, text: str) -> str:
        return text.removeprefix(" ") if self.add_prefix_space else text

    def _piece(self, index: int) -> str:
        if index not in self._pieces_by_id:
            raise InputError(f"id {index} is no token of this vocabulary")
        return self._pieces_by_id[index]

    def _index(self, piece: str) -> int | None:
        return self.vocab.get(piece)

    def _identity(self) -> Iterable[bytes]:
        ordinary = sorted((index, piece) for piece, index in self.vocab.items() if piece not in self.added.by_content)
        yield "\n".join(f"{index} {piece}" for index, piece in ordinary).encode()
        yield "\n".join(map(" ".join, self.merges)).encode()
        yield bytes([self.add_prefix_space])

    def save(self, directory: str | storage.AnyPath) -> None:
        """Writes vocab.json, merges.txt and tokenizer_config.json."""
        directory = storage.as_path(directory)
        storage.make_directory(directory)
        special = {name: token.id for name, token in self.added.by_content.items()}
        entries = sorted((self.vocab | special).items(), key=lambda entry: entry[1])
        write_tokenizer_json(directory / "vocab.json", dict(entries))
        lines = ["#version: 0.2", *map(" ".join, self.merges)]
        storage.write_text(directory / "merges.txt", "\n".join(lines) + "\n")
        config = {
            "add_prefix_space": self.add_prefix_space,
            "do_lower_case": False,
            "tokenizer_class": "DebertaTokenizer",
            "vocab_type": "gpt2",
        }
        write_tokenizer_json(directory / "tokenizer_config.json", config | self.added.config())


def byte_level_bpe(vocab: dict[str, int], merges: Sequence[tuple[str, str]]) -> tokenizers.Tokenizer:
    """Returns the `tokenizers` library's byte-level BPE without added tokens.

    Raises:
        InputError: a merge gives a piece that is not in `vocab`.
    """
    with library_errors("vocabulary and merges do not belong together"):
        library = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=list(merges), unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return library


@contextmanager
def library_errors(what: str, advice: str = "") -> Iterator[None]:
    """Converts errors of the `tokenizers` library in the block to InputError.

    The library raises nothing narrower than Exception, and its panics are not even that.

    Args:
        what: what cannot be done, for the message.
        advice: what to do about it.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, UnicodeEncodeError):
        raise
    except BaseException as error:
        raise InputError(f"{what}: {brief(error, 200)}{advice}") from None


def _byte_characters() -> dict[str, int]:
    """Returns GPT-2's mapping of printable characters to bytes.

    A printable byte is the character with its own code; the others are the characters from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTES = _byte_characters()


def _bytes_of(piece: str) -> bytes:
    """Returns the bytes that a piece spells, or its own text if it is no spelling, as in the `tokenizers` library."""
    try:
        return bytes([BYTES[character] for character in piece])
    except KeyError:
        return piece.encode()


def after_space(text: str) -> np.ndarray:
    """Returns int64 [len(text) + 1]: for each position k the first position from k on that is not white space."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    positions = np.arange(len(codes) + 1)
    positions[:-1][np.isin(codes, SPACES)] = len(codes)
    return np.minimum.accumulate(positions[::-1])[::-1]
