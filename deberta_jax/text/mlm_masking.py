"""Chooses which tokens a masked language model predicts, and by what they are replaced; numpy, on whole batches.

The random numbers of a row depend only on the seed and the row's number (Philox, with the row as counter), so a mask
does not depend on the batch or the process in which the row is read.
"""

import dataclasses
import unicodedata
from typing import Literal

import numpy as np

from deberta_jax.errors import InputError
from deberta_jax.text.tokenizer import Tokenizer

# Scripts without spaces between words, as (first, last) code points. A piece that begins with such a character begins
# a word.
_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x9FFF),
    (0x20000, 0x3FFFF),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking:
    """Says how targets are chosen and replaced.

    The defaults are BERT's. DeBERTa v1 and v2 mask words in spans of up to 3; v3's generator masks single tokens and
    always shows [MASK].
    """

    probability: float = 0.15
    """Fraction of the tokens of a row, special ones not counted, that are predicted."""
    unit: Literal["token", "word"] = "token"
    """Unit that is masked as a whole: a token, or all tokens of a word."""
    longest_span: int = 1
    """Most neighbouring units that are masked together; spans of n units are drawn with weight 1/n."""
    shown: Literal["80-10-10", "mask"] = "80-10-10"
    """Input at a target: [MASK], a random token or the token itself in 80, 10 and 10 % of cases; or
    always [MASK]."""
    skip_tail: bool = False
    """Reproduce the data generator of the original code. It takes spans from the left until enough tokens are masked,
    so the last tenth of every row is almost never masked. By default every token is equally likely."""

    def check(self) -> None:
        """Checks the values. Raises InputError for one that cannot be used."""
        if not 0 < self.probability < 1:
            raise InputError(f"--mask-share {self.probability}: must lie between 0 and 1")
        if self.longest_span < 1:
            raise InputError(f"--longest-span {self.longest_span}: must be at least 1")

    def targets(self, length: int) -> int:
        """Returns P, the largest number of targets of a row of ``length`` tokens.

        It is the expected number, and a few more, because masked words and spans differ in size.
        """
        if self.skip_tail:
            return max(1, round(self.probability * length))
        room = 4 * self.longest_span if self.unit == "word" else self.longest_span - 1
        return max(1, min(round(self.probability * (length - 2)) + room, length - 2))


def begins_word(tokenizer: Tokenizer) -> np.ndarray:
    """Returns for each piece whether it begins a word, whatever is before it.

    A piece begins a word if it begins with the sign of a space ("▁", or "Ġ" in a byte-level vocabulary), is a single
    punctuation character or a special token, or begins with a character of a script without spaces. All others continue
    the word before them. Except for these scripts it is the rule of Microsoft's tokenizers.

    Returns:
      bool [vocab_size].
    """
    starts = np.ones(tokenizer.vocab_size, bool)
    space = "Ġ" if tokenizer.kind == "bpe" else "▁"
    special = set(tokenizer.all_special_ids)
    for index in range(tokenizer.vocab_size):
        if index in special:
            continue
        try:
            piece = tokenizer.id_to_token(index)
        except InputError:  # an unused id, which no text contains
            continue
        starts[index] = piece.startswith(space) or _alone(tokenizer.decode([index]) if space == "Ġ" else piece)
    return starts


def _alone(text: str) -> bool:
    """Returns whether a piece without a space before it is a word, or begins one."""
    if not text:
        return False
    code = ord(text[0])
    if any(first <= code <= last for first, last in _UNSPACED):
        return True
    return len(text) == 1 and (text.isspace() or unicodedata.category(text)[0] in "PCS")


def draws(seed: int, rows: np.ndarray, count: int, stream: int = 0) -> np.ndarray:
    """Draws random numbers that depend only on the seed, the stream, the row's number and ``count``.

    Args:
      seed: any integer.
      rows: int64 [B], the number of each row.
      count: random numbers per row.
      stream: another stream gives independent numbers for the same seed and rows.

    Returns:
      float64 [B, count], uniform in [0, 1).
    """
    blocks = -(-count // 4)  # Philox gives four numbers for each value of its counter
    out = np.empty((len(rows), blocks * 4))
    key = np.array([seed, stream], np.uint64)
    edges = np.flatnonzero(np.diff(rows, prepend=rows[:1] - 2, append=rows[-1:] + 2) != 1)
    for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        generator = np.random.Generator(np.random.Philox(key=key, counter=int(rows[first]) * blocks))
        generator.random(out=out[first:end])
    return out[:, :count]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Holds what masking needs to know of a tokenizer."""

    special: np.ndarray
    """bool [V]: whether the token is special."""
    starts: np.ndarray
    """bool [V]: whether the token begins a word."""
    ordinary: np.ndarray
    """int64: the ids of all tokens that are not special."""
    mask_id: int
    """The id of [MASK]."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Vocabulary":
        """Returns the vocabulary of a tokenizer."""
        special = np.zeros(tokenizer.vocab_size, bool)
        special[list(tokenizer.all_special_ids)] = True
        return cls(special, begins_word(tokenizer), np.flatnonzero(~special), tokenizer.mask_id)


def mask_tokens(
    ids: np.ndarray, real: np.ndarray, vocabulary: Vocabulary, masking: Masking, *, seed: int, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chooses the targets of each row and replaces them in the input.

    Without ``skip_tail`` the tokens of a row that are not special are divided into groups (tokens, words, or spans of
    them), and all groups have the same probability to be chosen, whatever their size and position. A group never
    crosses a special token, so it stays within one text of the row. Single tokens give exactly
    ``round(probability * tokens)`` targets per row (at least one). Larger groups are chosen whole, so a row can have a
    few more or fewer; the average is the same.

    Args:
      ids: int [B,T], token ids.
      real: bool [B,T], False for padding.
      vocabulary: special tokens, beginnings of words, and the id of [MASK].
      masking: how targets are chosen and replaced.
      seed: the seed of the run.
      rows: int64 [B], the number of each row. The result for a row depends only on this, the seed and the row itself.

    Returns:
      The ids that the model sees, int32 [B,T]; the positions of the targets, int32 [B,P], ascending, -1 for none, with
      P = ``masking.targets(T)``; and their true ids, int32 [B,P], -100 for none.
    """
    count, (batch, length) = masking.targets(ids.shape[1]), ids.shape
    predictable = real & ~vocabulary.special[ids]
    random = draws(seed, rows, 2 * length + 1 + 2 * count)
    units = _units(ids, predictable, vocabulary, masking)
    if masking.skip_tail:
        chosen = _from_the_left(units, predictable, real, masking, random[:, : 2 * length])
    else:
        groups = spans(units, predictable, masking.longest_span, random[:, :length])
        chosen = _evenly(groups, predictable, masking.probability, count, random[:, length : 2 * length + 1])
    row, column = np.nonzero(chosen)
    slot = (np.cumsum(chosen, axis=1) - 1)[row, column]
    if masking.skip_tail:  # the word that exceeds the budget is truncated
        row, column, slot = (values[slot < count] for values in (row, column, slot))
    positions = np.full((batch, count), -1, np.int32)
    labels = np.full((batch, count), -100, np.int32)
    positions[row, slot], labels[row, slot] = column, ids[row, column]
    masked_ids = ids.astype(np.int32)
    shown = np.full(len(row), vocabulary.mask_id, np.int32)
    if masking.shown == "80-10-10":
        kind = random[row, 2 * length + 1 + slot]
        other = random[row, 2 * length + 1 + count + slot]
        if masking.skip_tail:  # the original code draws from the whole vocabulary
            drawn = (other * len(vocabulary.special)).astype(np.int32)
        else:
            drawn = vocabulary.ordinary[(other * len(vocabulary.ordinary)).astype(np.int64)]
        shown = np.where(kind < 0.8, shown, np.where(kind < 0.9, drawn, labels[row, slot]))
    masked_ids[row, column] = shown
    return masked_ids, positions, labels


def _units(ids: np.ndarray, predictable: np.ndarray, vocabulary: Vocabulary, masking: Masking) -> np.ndarray:
    """Returns bool [B,T]: the tokens at which a unit (token or word) begins."""
    if masking.unit == "token":
        return predictable
    return predictable & (vocabulary.starts[ids] | _after_border(predictable))


def _after_border(predictable: np.ndarray) -> np.ndarray:
    """Returns bool [B,T]: whether the token before is special or padding, or there is none."""
    after = np.ones_like(predictable)
    after[:, 1:] = ~predictable[:, :-1]
    return after


def span_lengths(random: np.ndarray, longest: int) -> np.ndarray:
    """Converts uniform numbers in [0, 1) to lengths from 1 to ``longest``, of which n has weight 1/n."""
    weights = np.cumsum(1 / np.arange(1, longest + 1))
    return 1 + np.searchsorted(weights[:-1] / weights[-1], random, side="right")


def spans(units: np.ndarray, predictable: np.ndarray, longest: int, random: np.ndarray) -> np.ndarray:
    """Divides the units of each row, from its beginning, into spans.

    A span is split where it would cross a special token.

    Args:
      units: bool [B,T], where units begin.
      predictable: bool [B,T], tokens that may be targets.
      longest: most units in a span; the lengths are drawn with weights 1/n.
      random: float64 [B,T], uniform in [0, 1).

    Returns:
      int64 [B,T]: the span of each predictable token, numbered from 0 in each row.
    """
    starts = units
    if longest > 1:
        batch, length = units.shape
        sizes = span_lengths(random, longest)
        begins = np.cumsum(sizes, axis=1) - sizes
        is_begin = np.zeros((batch, length + longest), bool)
        row, column = np.nonzero(begins < length)
        is_begin[row, begins[row, column]] = True
        number = np.maximum(np.cumsum(units, axis=1) - 1, 0)
        starts = units & (np.take_along_axis(is_begin, number, axis=1) | _after_border(predictable))
    return np.maximum(np.cumsum(starts, axis=1) - 1, 0)


def _evenly(
    groups: np.ndarray, predictable: np.ndarray, probability: float, most: int, random: np.ndarray
) -> np.ndarray:
    """Chooses groups by systematic sampling.

    The groups of a row are sorted by size, with random order among equal sizes, and taken at regular distances from a
    random start. So all groups have the same probability, and each size is chosen in proportion: the number of tokens
    differs from its expectation by about one group at most. Groups that would exceed ``most`` tokens are left out.

    Args:
      groups: int64 [B,T], the group of each token.
      predictable: bool [B,T], tokens that may be targets.
      probability: fraction of the tokens to choose.
      most: the largest number of tokens to choose in a row.
      random: float64 [B,T+1], uniform in [0, 1).

    Returns:
      bool [B,T]: the tokens of the chosen groups.
    """
    batch, length = groups.shape
    flat = groups + np.arange(batch)[:, None] * length
    sizes = np.bincount(flat[predictable], minlength=batch * length).reshape(batch, length)
    tokens, count = predictable.sum(axis=1), (sizes > 0).sum(axis=1)
    budget = np.maximum(1, np.rint(probability * tokens))
    rate = np.maximum(budget / np.maximum(tokens, 1), 1 / np.maximum(count, 1))[:, None]
    order = np.argsort(np.where(sizes > 0, sizes + random[:, :-1], np.inf), axis=1)
    steps = np.floor(np.arange(length + 1) * rate + random[:, -1:] * (1 - 1e-9))
    taken = (np.diff(steps, axis=1) > 0) & (np.arange(length) < count[:, None])
    taken &= np.cumsum(np.take_along_axis(sizes, order, axis=1) * taken, axis=1) <= most
    chosen = np.zeros((batch, length), bool)
    np.put_along_axis(chosen, order, taken, axis=1)
    return predictable & np.take_along_axis(chosen, groups, axis=1)


def _from_the_left(
    units: np.ndarray, predictable: np.ndarray, real: np.ndarray, masking: Masking, random: np.ndarray
) -> np.ndarray:
    """Chooses targets as the data generator of the original code does.

    From left to right it draws a length n with weight 1/n, takes a window of the next ``n * int(1 / probability)``
    units, and masks n units from a random one in the window. It stops at the first unit that reaches the budget, which
    is computed from all tokens of the row, including special ones.

    Args:
      units: bool [B,T], where units begin.
      predictable: bool [B,T], tokens that may be targets.
      real: bool [B,T], False for padding.
      masking: probability and longest span.
      random: float64 [B,2T], uniform in [0, 1).

    Returns:
      bool [B,T]: the targets.
    """
    batch, length = units.shape
    number = np.maximum(np.cumsum(units, axis=1) - 1, 0)
    count = units.sum(axis=1)
    window, offset = int(1 / masking.probability), np.zeros(batch, np.int64)
    edges = np.zeros((batch, length + 1), np.int64)
    every = np.arange(batch)
    for step in range(length):
        going = offset < count
        if not going.any():
            break
        size = span_lengths(random[:, step], masking.longest_span)
        context = np.minimum(size * window, count - offset)
        start = offset + (random[:, length + step] * context).astype(np.int64)
        end = np.minimum(start + size, count)
        np.add.at(edges, (every[going], start[going]), 1)
        np.add.at(edges, (every[going], end[going]), -1)
        offset = np.where(going, np.maximum(offset + context, end), offset)
    chosen = predictable & (np.take_along_axis(np.cumsum(edges, axis=1), number, axis=1) > 0)
    budget = np.maximum(1, np.rint(masking.probability * real.sum(axis=1)))
    before = np.cumsum(chosen, axis=1) - chosen  # number of targets to the left of the token
    at_start = np.maximum.accumulate(np.where(units, before, 0), axis=1)  # the same for the first token of its unit
    return chosen & (at_start < budget[:, None])
