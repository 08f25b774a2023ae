"""Tokenises examples of any length into flat arrays, which can be cached on disk and mapped into memory."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.text import Tokenizer
from deberta_jax.text.tokenizer import Truncation

_log = logging.getLogger(__name__)

EXAMPLE, TOKEN, SPAN = "example", "token", "span"


@runtime_checkable
class TokenizerLike(Protocol):
    """Declares the method of a tokenizer that plain texts need."""

    def encode_ragged(
        self,
        texts: Sequence[str],
        text_pairs: Sequence[str] | None = None,
        max_length: int | None = None,
        truncation: Truncation = "longest_first",
    ) -> list[tuple[np.ndarray, np.ndarray]]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """Holds tokenised texts. Text i has the tokens ``ids[starts[i]:starts[i+1]]``.

    An example consists of ``choices`` consecutive texts: 1, or more in multiple choice, where a missing choice is a
    text without tokens. N is the number of all tokens, n that of texts.

    Attributes:
      ids: int32 [N], token ids including special tokens.
      types: int8 [N], token type ids.
      starts: int64 [n + 1], the first token of each text.
      labels: depends on ``level``. For EXAMPLE, of each example: int32 or float32 [examples], or float32 [examples, C].
        For TOKEN, of each token: int32 [N], -100 for none. For SPAN, the first and last token of the answer in each
        text: int32 [n, 2], -1 if it is not in this text.
      level: EXAMPLE, TOKEN or SPAN: what has a label.
      choices: texts per example.
      row: int32 [n], the row of the table of each text.
      offsets: int32 [N, 2], first and end character of each token in its text, (0, 0) outside the context. For the raw
        texts of a tagger: those of each word, at its first token.
      words: int32 [N], the number of the word that a token begins; -1 for all others.
      cut: number of texts that were longer than the limit, and were truncated or split.
    """

    ids: np.ndarray
    types: np.ndarray
    starts: np.ndarray
    labels: np.ndarray | None = None
    level: str = EXAMPLE
    choices: int = 1
    row: np.ndarray | None = None
    offsets: np.ndarray | None = None
    words: np.ndarray | None = None
    cut: int = 0

    def __len__(self) -> int:
        """Returns the number of examples."""
        return (len(self.starts) - 1) // self.choices

    @property
    def lengths(self) -> np.ndarray:
        """Returns the number of tokens of each text: int64 [n]."""
        return np.diff(self.starts)

    @property
    def nbytes(self) -> int:
        """Returns the size of all arrays."""
        return sum(array.nbytes for array in self._arrays())

    def release(self) -> None:
        """Takes arrays that are mapped from files out of this process's memory; they are read again when used again."""
        for array in self._arrays():
            storage.release(array)

    def _arrays(self) -> list[np.ndarray]:
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return [value for value in values if isinstance(value, np.ndarray)]

    def texts_of(self, example: int) -> range:
        """Returns the indices of the texts of an example."""
        return range(example * self.choices, (example + 1) * self.choices)


def make_features(
    tokenizer: TokenizerLike,
    texts: Sequence[str],
    text_pairs: Sequence[str] | None,
    *,
    max_length: int,
    labels: np.ndarray | None = None,
    truncation: Truncation = "longest_first",
) -> Features:
    """Tokenises texts or pairs. Those of more than ``max_length`` tokens are truncated.

    Args:
      tokenizer: the tokenizer.
      texts: the texts, or the first parts of pairs.
      text_pairs: the second parts, or None.
      max_length: the largest number of tokens, including special tokens.
      labels: the labels of the examples, if any.
      truncation: the part whose end is removed, as for tokenizers; by default the longer one.

    Raises:
      InputError: there is no text, or there are not as many labels as texts.
    """
    if not texts:
        raise InputError("no texts; give one or more")
    if labels is not None and len(labels) != len(texts):
        raise InputError(f"{len(labels)} labels for {len(texts)} texts; give one for each")
    encoded = tokenizer.encode_ragged(texts, text_pairs, max_length=max_length, truncation=truncation)
    lengths = np.asarray([len(ids) for ids, _ in encoded], np.int64)
    at_limit = np.flatnonzero(lengths >= max_length).tolist()
    cut = 0
    if at_limit:
        pairs = None if text_pairs is None else [text_pairs[i] for i in at_limit]
        whole = tokenizer.encode_ragged([texts[i] for i in at_limit], pairs)
        cut = sum(len(ids) > max_length for ids, _ in whole)
    return Features(
        ids=np.concatenate([ids for ids, _ in encoded]).astype(np.int32),
        types=np.concatenate([types for _, types in encoded]).astype(np.int8),
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        labels=labels,
        cut=cut,
    )


def choice_features(
    tokenizer: TokenizerLike,
    firsts: Sequence[Sequence[str]],
    seconds: Sequence[Sequence[str]],
    *,
    max_length: int,
    labels: np.ndarray | None = None,
) -> Features:
    """Tokenises the choices of each example as pairs of texts. Missing choices become texts without tokens.

    Args:
      tokenizer: the tokenizer.
      firsts: for each example the first parts of its pairs.
      seconds: for each example the second parts.
      max_length: the largest number of tokens of a pair.
      labels: int32 [examples], the right choices, if known.
    """
    count = max(map(len, firsts))
    flat = make_features(
        tokenizer, [a for row in firsts for a in row], [b for row in seconds for b in row], max_length=max_length
    )
    lengths = np.zeros((len(firsts), count), np.int64)
    lengths[np.arange(count) < np.array([len(row) for row in firsts])[:, None]] = flat.lengths
    starts = np.concatenate([[0], np.cumsum(lengths.ravel())])
    return dataclasses.replace(flat, starts=starts, choices=count, labels=labels)


def word_features(
    tokenizer: Tokenizer, sentences: Sequence[list[str]], tags: Sequence[Sequence[int]] | None, *, max_length: int
) -> Features:
    """Tokenises sentences that are split into words. The first token of each word has its tag as label, others -100.

    A sentence longer than ``max_length`` continues in further texts, so every word has a token.

    Args:
      tokenizer: the tokenizer.
      sentences: the words of each sentence.
      tags: the tag ids of the words, or None without labels.
      max_length: the largest number of tokens of a text.
    """
    encoded = tokenizer(
        list(sentences), max_length=max_length, truncation="only_first", stride=0, is_split_into_words=True
    )
    row = np.asarray(encoded.overflow_to_sample_mapping, np.int32)
    ids, words = _flat(encoded.input_ids), _flat(encoded.word_ids)
    lengths = np.asarray([len(text) for text in encoded.input_ids], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    # A token begins a word if the token before it belongs to another word or sentence. A text may begin within a word:
    # then the token before it, in the text before, belongs to the same word.
    owner = np.repeat(row, lengths)
    real = words >= 0
    key = np.where(real, owner.astype(np.int64) << 32 | words.astype(np.int64), -1)
    inner = key[real]
    begins = np.zeros(len(ids), bool)
    begins[np.flatnonzero(real)] = np.concatenate([[True], inner[1:] != inner[:-1]])
    words = np.where(begins, words, -1).astype(np.int32)
    labels = None
    if tags is not None:
        flat_tags = np.concatenate([np.asarray(t, np.int32) for t in tags])
        first = np.concatenate([[0], np.cumsum([len(t) for t in tags])])
        labels = np.where(begins, flat_tags[first[owner] + np.maximum(words, 0)], -100).astype(np.int32)
    cut = int((np.bincount(row, minlength=len(sentences)) > 1).sum())
    return Features(
        ids=ids,
        types=np.zeros(len(ids), np.int8),
        starts=starts,
        labels=labels,
        level=TOKEN,
        row=row,
        words=words,
        cut=cut,
    )


def span_features(
    tokenizer: Tokenizer,
    questions: Sequence[str],
    contexts: Sequence[str],
    answers: Sequence[tuple[int, int] | None] | None,
    *,
    max_length: int,
    stride: int,
    where: Callable[[int], str] | None = None,
) -> Features:
    """Tokenises questions with their contexts: ``[CLS] question [SEP] context [SEP]``.

    A long context is split into windows that overlap by ``stride`` tokens.

    Args:
      tokenizer: the tokenizer.
      questions: the questions.
      contexts: their contexts.
      answers: first and end character of each answer in its context, or None if a question has no answer. The label of
        a window without the whole answer is its first token, [CLS], as in BERT's script. None without labels.
      max_length: the largest number of tokens of a window.
      stride: tokens that consecutive windows share.
      where: returns the name of a question for messages, given its index; by default its number.

    Raises:
      InputError: a question leaves no room for the context.
    """
    limit = max_length - stride - 4  # [CLS], two [SEP], and one token beyond the overlap
    lengths = [len(ids) - 2 for ids, _ in tokenizer.encode_ragged(questions)]
    for i in np.flatnonzero(np.asarray(lengths) > limit)[:1]:
        named = f"question {i + 1}" if where is None else f"{where(int(i))}: the question"
        raise InputError(
            f"{named} has {lengths[i]} tokens; --max-length {max_length} with --doc-stride {stride} leaves "
            f"{limit}; raise the one or lower the other"
        )
    encoded = tokenizer(
        list(questions),
        list(contexts),
        max_length=max_length,
        truncation="only_second",
        stride=stride,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    row = np.asarray(encoded.overflow_to_sample_mapping, np.int32)
    lengths = np.asarray([len(text) for text in encoded.input_ids], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    types = _flat(encoded.token_type_ids).astype(np.int8)
    context = (types == 1) & (_flat(encoded.special_tokens_mask) == 0)
    offsets = np.where(context[:, None], np.concatenate(list(encoded.offset_mapping)), 0).astype(np.int32)
    labels = None
    if answers is not None:
        labels = np.zeros((len(row), 2), np.int32)
        for text, i in enumerate(row):
            answer = answers[i]
            if answer is not None:
                part = slice(starts[text], starts[text + 1])
                labels[text] = _answer_tokens(offsets[part], context[part], answer)
    return Features(
        ids=_flat(encoded.input_ids),
        types=types,
        starts=starts,
        labels=labels,
        level=SPAN,
        row=row,
        offsets=offsets,
        cut=int((np.bincount(row, minlength=len(questions)) > 1).sum()),
    )


def _answer_tokens(offsets: np.ndarray, context: np.ndarray, answer: tuple[int, int]) -> tuple[int, int]:
    """Returns the first and last token of the answer; (0, 0) if the text does not contain all of it."""
    first, last = answer[0], answer[1] - 1
    inside = np.flatnonzero(context & (offsets[:, 0] < offsets[:, 1]))
    if not len(inside) or offsets[inside[0], 0] > first or offsets[inside[-1], 1] <= last:
        return 0, 0
    # Offsets ascend. The answer begins with the first token that ends after the answer's first character, and ends with
    # the last token that begins at or before the answer's last character.
    begin = inside[np.searchsorted(offsets[inside, 1], first, side="right")]
    end = inside[np.searchsorted(offsets[inside, 0], last, side="right") - 1]
    return int(begin), int(max(begin, end))


def _flat(rows: Any) -> np.ndarray:
    """Concatenates rows to one int32 array."""
    return np.concatenate([np.asarray(row) for row in rows]).astype(np.int32)


class LongTexts:
    """Counts the texts that were longer than the limit, over any number of tables."""

    def __init__(self, *features: Features):
        self.cut, self.count, self.level = 0, 0, EXAMPLE
        for some in features:
            self.add(some)

    def add(self, features: Features) -> None:
        """Adds the texts of a table."""
        self.cut += features.cut
        self.count += int((features.lengths > 0).sum()) if features.row is None else int(features.row.max()) + 1
        self.level = features.level

    def log(self, where: str, max_length: int, how: str = "cut") -> None:
        """Logs their number, if there are any, and whether they were truncated or split."""
        if not self.cut:
            return
        said = "%s: %d of %d texts are longer than %d tokens and were %s"
        if self.level == EXAMPLE:
            _log.warning(said, where, self.cut, self.count, max_length, how)
        else:
            _log.info(said, where, self.cut, self.count, max_length, "read in parts")


def log_cut(features: Features, where: str, max_length: int) -> None:
    """Logs how many texts of one table were longer than the limit, and whether they were truncated or split."""
    LongTexts(features).log(where, max_length)


_BLOCK = 1 << 24


def blocks_of_array(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields consecutive parts of an array. One that is mapped from a file is never whole in memory meanwhile."""
    for start in range(0, len(array), _BLOCK):
        yield array[start : start + _BLOCK]
        storage.release(array)


def extremes(array: np.ndarray) -> tuple[int, int]:
    """Returns the smallest and the largest number of an array of integers that is not empty."""
    found = [(int(block.min()), int(block.max())) for block in blocks_of_array(array)]
    return min(low for low, _ in found), max(top for _, top in found)


def check_vocabulary(features: Features, vocab_size: int, where: str) -> None:
    """Checks that all ids have word embeddings; on a device, a lookup of other ids would not fail.

    Raises:
      InputError: an id is outside the vocabulary.
    """
    low, top = extremes(features.ids)
    if low < 0 or top >= vocab_size:
        raise InputError(
            f"{where}: token id {low if low < 0 else top} is outside the model's vocabulary of {vocab_size}; "
            "tokenizer and config.json do not belong together"
        )
