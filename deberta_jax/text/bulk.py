"""Encodes many texts quickly: each distinct word is tokenized once, and texts are looked up word by word.

The result is exact if no piece of the vocabulary crosses a word boundary, which is checked first:

- v1: a word is a sequence of white space followed by a sequence of other characters. GPT-2's expression splits before
  every sequence of white space.
- v2, v3: words are separated by white space, of which SentencePiece makes one space. SentencePiece sums the scores of a
  text in float32, so in a very long text the words before may decide between two nearly equal segmentations of a
  word; here each word has the pieces that it has on its own.

Texts that contain an added token, or white space or "\u2581" that SentencePiece does not treat as a space, are encoded
as a whole.
"""

import re
from collections.abc import Sequence

import numpy as np

from deberta_jax.text.bpe import ByteLevelTokenizer
from deberta_jax.text.encoding import lengths_of
from deberta_jax.text.spm import SPACE, SentencePieceTokenizer
from deberta_jax.text.tokenizer import Tokenizer

# The table of words is cleared when its words have more characters than this.
MOST_KEPT = 1 << 25
# White space as the library's expression defines it: without \x1c to \x1f.
_CHUNKS = re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]+|[^\S\x1c-\x1f]+")
# Characters that few vocabularies have.
_RARE = "\ue000\u0378龘"
_WHITE_SPACE = [chr(code) for code in range(0x3001) if chr(code).isspace()]


class Words(dict[str, bytes | None]):
    """Maps each word to the bytes of its int32 ids, or to None if it contains an added token.

    A word that is missing is tokenized and kept. `characters` counts the characters of all words.
    """

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer, self.characters = tokenizer, 0

    def __missing__(self, word: str) -> bytes | None:
        added = self.tokenizer.added.pattern.search(word)
        ids = None if added else self.tokenizer.encode_flat([word])[0].tobytes()
        self.characters += len(word)
        self[word] = ids
        return ids


class BulkEncoder:
    """Computes the same as ``tokenizer.encode_flat``, faster for large amounts of text, on one core."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.by_words, self.unsafe = True, list[str]()
        if isinstance(tokenizer, ByteLevelTokenizer):
            self.split = _CHUNKS.findall
            self.by_words = not tokenizer.add_prefix_space
        elif isinstance(tokenizer, SentencePieceTokenizer):
            self.split = str.split
            self.unsafe = [c for c in (*_WHITE_SPACE, SPACE) if not _is_space(tokenizer, c)]
            self.by_words = _within_words(tokenizer)
        else:
            self.by_words = False
        self.known = Words(tokenizer)

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes texts without special tokens.

        Returns:
            The ids of all texts one after the other, int32 [sum of lengths], and the number of ids of each text,
            int64 [len(texts)].
        """
        if not self.by_words:
            return self.tokenizer.encode_flat(texts)
        if self.known.characters > MOST_KEPT:
            self.known = Words(self.tokenizer)
        encoded = list(map(self._one, texts))
        return np.frombuffer(b"".join(encoded), np.int32), lengths_of(encoded) // 4

    def _one(self, text: str) -> bytes:
        """Returns the bytes of the int32 ids of a text."""
        if not any(c in text for c in self.unsafe):
            try:
                return b"".join(map(self.known.__getitem__, self.split(text)))  # pyright: ignore[reportArgumentType]
            except TypeError:  # a word with an added token is None
                pass
        return self.tokenizer.encode_flat([text])[0].tobytes()


def _is_space(tokenizer: SentencePieceTokenizer, character: str) -> bool:
    """Returns whether a character between two words has the same effect as a space."""
    apart, alone = (
        tokenizer.encode_flat([f"a{character}b", f"{character}a{character}"]),
        tokenizer.encode_flat(["a b", "a"]),
    )
    return all(np.array_equal(x, y) for x, y in zip(apart, alone, strict=True))


def _within_words(tokenizer: SentencePieceTokenizer) -> bool:
    """Returns whether no piece and no added token crosses a word boundary."""
    pieces = tokenizer._processor.id_to_piece(list(range(tokenizer._processor.get_piece_size())))
    inside = any(SPACE in piece[1:].lstrip(SPACE) for piece in pieces)
    spaced = any(any(c.isspace() for c in token.content) for token in tokenizer.added.tokens)
    plain = not inside and not spaced and _is_space(tokenizer, " ") and not tokenizer._processor.encode("")
    return plain and all(_stands_alone(tokenizer, character) for character in _RARE)


def _stands_alone(tokenizer: SentencePieceTokenizer, character: str) -> bool:
    """Returns whether a word has the same ids after another one.

    SentencePiece joins unknown pieces that are neighbours. Two words are, if the space between them is no piece of its
    own, as in a model of whole words.
    """
    both, alone = (
        tokenizer.encode_flat([f"{character} {character}", character])[0],
        tokenizer.encode_flat([character])[0],
    )
    return np.array_equal(both, np.tile(alone, 3))
