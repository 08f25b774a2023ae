"""Many texts at once: every distinct word is encoded once, and a text is looked up word by word.

Exact where neither vocabulary has a piece that reaches from one word into the next, which is looked at first:

- v1: a word here is a run of white space and the run of other characters after it. GPT-2's expression cuts before every
  run of white space, whatever follows.
- v2, v3: a word is what stands between white space; SentencePiece makes one space of every run of it. SentencePiece
  adds up a text's scores in float32, so that in a very long text it may choose between two nearly equal
  segmentations of a word by what stands before it; here a word has the pieces that it has by itself.

Texts that hold an added token, or white space that SentencePiece does not take for a space, are encoded as a whole.
"""

import re
from collections.abc import Sequence

import numpy as np

from deberta_jax.text.bpe import ByteLevelTokenizer
from deberta_jax.text.encoding import lengths_of
from deberta_jax.text.spm import SPACE, SentencePieceTokenizer
from deberta_jax.text.tokenizer import Tokenizer

# Characters of words kept; then all are forgotten.
MOST_KEPT = 1 << 25
# White space as the library's expression has it: not \x1c to \x1f.
_CHUNKS = re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]+|[^\S\x1c-\x1f]+")
_WHITE_SPACE = [chr(code) for code in range(0x3001) if chr(code).isspace()]


class Words(dict[str, bytes | None]):
    """Word -> its ids as bytes of int32; None where it holds an added token. A word asked for is a word known."""

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
    """What ``tokenizer.encode_flat`` gives, sooner for much text; on one core."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.by_words, self.unsafe = True, list[str]()
        if isinstance(tokenizer, ByteLevelTokenizer):
            self.split = _CHUNKS.findall
            self.by_words = not tokenizer.add_prefix_space
        elif isinstance(tokenizer, SentencePieceTokenizer):
            self.split = str.split
            self.unsafe = [c for c in _WHITE_SPACE if not _is_space(tokenizer, c)]
            self.by_words = _within_words(tokenizer)
        else:
            self.by_words = False
        self.known = Words(tokenizer)

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """int32 ids of all texts one after the other, without special tokens, and int64 the number of each text's."""
        if not self.by_words:
            return self.tokenizer.encode_flat(texts)
        if self.known.characters > MOST_KEPT:
            self.known = Words(self.tokenizer)
        rows = list(map(self._one, texts))
        return np.frombuffer(b"".join(rows), np.int32), lengths_of(rows) // 4

    def _one(self, text: str) -> bytes:
        if not any(c in text for c in self.unsafe):
            try:
                return b"".join(map(self.known.__getitem__, self.split(text)))  # pyright: ignore[reportArgumentType]
            except TypeError:  # None among them
                pass
        return self.tokenizer.encode_flat([text])[0].tobytes()


def _is_space(tokenizer: SentencePieceTokenizer, character: str) -> bool:
    """Whether words on both sides of a character are encoded as if a space stood between them."""
    apart, alone = (
        tokenizer.encode_flat([f"a{character}b", f"{character}a{character}"]),
        tokenizer.encode_flat(["a b", "a"]),
    )
    return all(np.array_equal(x, y) for x, y in zip(apart, alone, strict=True))


def _within_words(tokenizer: SentencePieceTokenizer) -> bool:
    """Whether no piece reaches from one word into the next, and no added token does."""
    pieces = tokenizer._processor.id_to_piece(list(range(tokenizer._processor.get_piece_size())))
    inside = any(SPACE in piece[1:].lstrip(SPACE) for piece in pieces)
    spaced = any(any(c.isspace() for c in token.content) for token in tokenizer.added.tokens)
    return not inside and not spaced and _is_space(tokenizer, " ") and not tokenizer._processor.encode("")
