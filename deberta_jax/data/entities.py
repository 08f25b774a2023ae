"""Tokenises raw texts for a tagger, in which the first token of each word carries the word's tag."""

import re
from collections.abc import Sequence

import numpy as np

from deberta_jax.data.features import TOKEN, Features
from deberta_jax.data.spans import Span
from deberta_jax.errors import InputError
from deberta_jax.text import Tokenizer

# Scripts without spaces between words, or whose names have suffixes attached: each character counts as a word.
_ALONE = (
    "\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
# One character of these scripts, consecutive letters and digits, or any other single character.
_WORD = re.compile(rf"[{_ALONE}]|(?:(?![{_ALONE}])\w)+|[^\w\s]")


def word_starts(text: str) -> np.ndarray:
    """Returns for each character of a text, and for its end, whether a word begins there: bool [len(text) + 1].

    A word is a sequence of letters and digits, or one other character that is not white space. In Chinese, Japanese,
    Korean, Thai and other scripts without spaces between words, each character is a word.
    """
    starts = np.zeros(len(text) + 1, bool)
    starts[[match.start() for match in _WORD.finditer(text)]] = True
    return starts


def text_features(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    spans: Sequence[Sequence[Span]] | None,
    names: Sequence[str],
    *,
    max_length: int,
) -> Features:
    """Tokenises raw texts for a tagger. The first token of each word has its tag as label, all others -100.

    A text longer than ``max_length`` continues in further windows, so every word has a token.

    Args:
      tokenizer: the tokenizer.
      texts: the texts.
      spans: the labelled spans of each text in order, or None without labels.
      names: the names of the tags.
      max_length: the largest number of tokens of a window, including special tokens.

    Returns:
      Features in which ``offsets`` holds the first and end character of a word at its first token, and (0, 0)
      elsewhere; ``words`` holds the number of the word in its text at these tokens.

    Raises:
      InputError: the label of a span is no tag.
    """
    encoded = tokenizer(
        list(texts),
        max_length=max_length,
        truncation="only_first",
        stride=0,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    row = np.asarray(encoded.overflow_to_sample_mapping, np.int32)
    lengths = np.asarray([len(ids) for ids in encoded.input_ids], np.int64)
    owner = np.repeat(row, lengths)
    offsets = np.concatenate(list(encoded.offset_mapping)).reshape(-1, 2)
    special = np.concatenate(list(encoded.special_tokens_mask)) == 1
    real = ~special & (offsets[:, 0] < offsets[:, 1])
    begins = np.zeros(len(owner), bool)
    before = -1
    starts: np.ndarray | None = None
    for i in np.flatnonzero(real).tolist():
        if owner[i] != before or starts is None:
            before, starts = int(owner[i]), word_starts(texts[int(owner[i])])
            begins[i] = True
        elif starts[offsets[i, 0]]:
            begins[i] = True
    words, spread = _words(begins, real, owner, offsets)
    labels = None
    if spans is not None:
        tags = Tags(names)
        labels = np.full(len(owner), -100, np.int32)
        for i in np.flatnonzero(begins).tolist():
            labels[i] = tags.of_word(spans[int(owner[i])], int(spread[i, 0]), int(spread[i, 1]))
    return Features(
        ids=np.concatenate(list(encoded.input_ids)).astype(np.int32),
        types=np.zeros(len(owner), np.int8),
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        labels=labels,
        level=TOKEN,
        row=row,
        offsets=spread,
        words=words,
        cut=int((np.bincount(row, minlength=len(texts)) > 1).sum()),
    )


def _words(
    begins: np.ndarray, real: np.ndarray, owner: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of each word in its text and its characters, at the tokens that begin words.

    Args:
      begins: bool [N], tokens that begin a word.
      real: bool [N], tokens that have characters.
      owner: int [N], the text of each token, ascending.
      offsets: int [N, 2], first and end character of each token.

    Returns:
      int32 [N], -1 for all other tokens, and int32 [N, 2], (0, 0) for all other tokens.
    """
    at = np.flatnonzero(begins)
    words, spread = np.full(len(begins), -1, np.int32), np.zeros((len(begins), 2), np.int32)
    if not len(at):
        return words, spread
    first = np.searchsorted(owner[at], owner[at])  # owners ascend
    words[at] = np.arange(len(at)) - first
    tokens = np.flatnonzero(real)
    # A word ends with the last token before the next word.
    last = tokens[np.append(np.searchsorted(tokens, at[1:]) - 1, len(tokens) - 1)]
    spread[at, 0], spread[at, 1] = offsets[at, 0], np.maximum(offsets[last, 1], offsets[at, 1])
    return words, spread


class Tags:
    """Finds the tags of words in spans, in the scheme of the given names: IOB2, IOB1, IO, IOBES or BILOU."""

    def __init__(self, names: Sequence[str]):
        self.ids = {name.casefold(): i for i, name in enumerate(names)}
        prefixes = {name.partition("-")[0] for name in names if "-" in name}
        self.single = next((p for p in ("S", "U") if p in prefixes), "B")
        self.last = next((p for p in ("E", "L") if p in prefixes), "I")
        self.names = tuple(names)

    def of_word(self, spans: Sequence[Span], start: int, end: int) -> int:
        """Returns the tag id of the word from ``start`` to ``end``, determined by the first span that overlaps it."""
        span = next((span for span in spans if span.start < end and start < span.end), None)
        if span is None:
            return self._id("O")
        first, final = span.start >= start, span.end <= end
        prefix = (self.single if final else "B") if first else (self.last if final else "I")
        return self._id(f"{prefix}-{span.label}", f"I-{span.label}", f"B-{span.label}", span.label)

    def _id(self, *names: str) -> int:
        """Returns the id of the first of these names that is a tag. Raises InputError if there is none."""
        for name in names:
            if name.casefold() in self.ids:
                return self.ids[name.casefold()]
        known = ", ".join(map(repr, self.names[:20]))
        raise InputError(f"no tag for a span {names[-1]!r}; known tags: {known}")
