"""Which tokens a masked language model predicts, and what it sees in their places; numpy, in whole batches.

Every draw is a function of the seed, the row's number and a place in the row (Philox, counted by row), so that a mask
does not depend on the batch, or the process, that the row is in.
"""

import dataclasses
import unicodedata
from typing import Literal

import numpy as np

from deberta_jax.errors import InputError
from deberta_jax.text.tokenizer import Tokenizer

# Scripts that put no space between words: a character that begins a piece begins a word. (first, last) code points.
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
    """How targets are chosen and shown.

    The default is BERT's. DeBERTa v1 and v2: words in spans of up to 3. v3's generator: tokens, [MASK] alone."""

    share: float = 0.15
    """Share of a row's tokens, special ones not counted, that are predicted."""
    unit: Literal["token", "word"] = "token"
    """What is masked whole."""
    longest_span: int = 1
    """Neighbouring units are masked together, n of them with a weight of 1/n, up to this many."""
    shown: Literal["80-10-10", "mask"] = "80-10-10"
    """What stands in a target's place: [MASK], a random token, itself in 80, 10, 10 % of cases; or always [MASK]."""
    skip_tail: bool = False
    """Reproduce the original's generator: it takes spans from the left until the budget is reached, so that the last
    tenth of every row is almost never masked. By default every token is equally likely."""

    def check(self) -> None:
        """Raises InputError for a value that cannot be used."""
        if not 0 < self.share < 1:
            raise InputError(f"--mask-share {self.share}: a share lies between 0 and 1")
        if self.longest_span < 1:
            raise InputError(f"--longest-span {self.longest_span}: must be at least 1")

    def targets(self, length: int) -> int:
        """P, the most targets of a row of ``length`` tokens: the share, and room for how much groups differ in size."""
        if self.skip_tail:
            return max(1, round(self.share * length))
        room = 4 * self.longest_span if self.unit == "word" else self.longest_span - 1
        return max(1, min(round(self.share * (length - 2)) + room, length - 2))


def word_starts(tokenizer: Tokenizer) -> np.ndarray:
    """bool [vocab_size]: whether a piece begins a word, whatever stands before it.

    A piece with the mark of a space ("▁", or "Ġ" in a byte-level vocabulary), a single mark of punctuation, a special
    token, or a character of a script without spaces; all others go on with the word before them. The rule of
    Microsoft's tokenizers, but for the scripts.
    """
    starts = np.ones(tokenizer.vocab_size, bool)
    space = "Ġ" if tokenizer.kind == "bpe" else "▁"
    special = set(tokenizer.all_special_ids)
    for index in range(tokenizer.vocab_size):
        if index in special:
            continue
        try:
            piece = tokenizer.id_to_token(index)
        except InputError:  # a hole in the vocabulary, which no text has
            continue
        starts[index] = piece.startswith(space) or _alone(tokenizer.decode([index]) if space == "Ġ" else piece)
    return starts


def _alone(text: str) -> bool:
    """Whether a piece without a space before it is a word of its own, or the beginning of one."""
    if not text:
        return False
    code = ord(text[0])
    if any(first <= code <= last for first, last in _UNSPACED):
        return True
    return len(text) == 1 and (text.isspace() or unicodedata.category(text)[0] in "PCS")


def draws(seed: int, rows: np.ndarray, width: int, stream: int = 0) -> np.ndarray:
    """Uniform in [0, 1), float64 [len(rows), width]: those of row number r follow from (seed, stream, r, width)."""
    blocks = -(-width // 4)  # Philox gives four numbers a count
    out = np.empty((len(rows), blocks * 4))
    key = np.array([seed, stream], np.uint64)
    edges = np.flatnonzero(np.diff(rows, prepend=rows[:1] - 2, append=rows[-1:] + 2) != 1)
    for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        generator = np.random.Generator(np.random.Philox(key=key, counter=int(rows[first]) * blocks))
        generator.random(out=out[first:end])
    return out[:, :width]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What masking must know of a tokenizer: ``special`` and ``starts`` are bool [V], ``ordinary`` the ids that are not
    special, ``mask_id`` that of [MASK]."""

    special: np.ndarray
    starts: np.ndarray
    ordinary: np.ndarray
    mask_id: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Vocabulary":
        special = np.zeros(tokenizer.vocab_size, bool)
        special[list(tokenizer.all_special_ids)] = True
        return cls(special, word_starts(tokenizer), np.flatnonzero(~special), tokenizer.mask_id)


def mask_tokens(
    ids: np.ndarray, real: np.ndarray, vocabulary: Vocabulary, masking: Masking, *, seed: int, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chooses targets and replaces them.

    Without ``skip_tail`` a row's predictable tokens are divided into groups (tokens, words, or spans of them), and
    every group is as likely as any other, whatever its size and wherever it stands, to be chosen. A group never reaches
    over a special token, nor into another text of the row. Masked singly, ``round(share * tokens)`` tokens of a row are
    targets (at least one); otherwise as many on average, and a few more or less in a row, for groups stay whole.

    Args:
      ids: int [B,T]. real: bool [B,T], False for padding; special tokens are found here.
      seed, rows: int64 [B], the number of each row: the masks follow from these alone.

    Returns:
      what the model sees [B,T]; the targets' positions [B,P] ascending (-1: none), P = ``masking.targets(T)``; and
      their true ids [B,P] (-100: none); all int32.
    """
    count, (batch, length) = masking.targets(ids.shape[1]), ids.shape
    predictable = real & ~vocabulary.special[ids]
    random = draws(seed, rows, 2 * length + 1 + 2 * count)
    units = _units(ids, predictable, vocabulary, masking)
    if masking.skip_tail:
        chosen = _from_the_left(units, predictable, real, masking, random[:, : 2 * length])
    else:
        groups = spans(units, predictable, masking.longest_span, random[:, :length])
        chosen = _evenly(groups, predictable, masking.share, count, random[:, length : 2 * length + 1])
    row, column = np.nonzero(chosen)
    place = (np.cumsum(chosen, axis=1) - 1)[row, column]
    if masking.skip_tail:  # the word that goes over the budget is cut
        row, column, place = (values[place < count] for values in (row, column, place))
    positions = np.full((batch, count), -1, np.int32)
    labels = np.full((batch, count), -100, np.int32)
    positions[row, place], labels[row, place] = column, ids[row, column]
    seen = ids.astype(np.int32)
    shown = np.full(len(row), vocabulary.mask_id, np.int32)
    if masking.shown == "80-10-10":
        fate = random[row, 2 * length + 1 + place]
        other = random[row, 2 * length + 1 + count + place]
        if masking.skip_tail:  # the original draws from the whole vocabulary
            drawn = (other * len(vocabulary.special)).astype(np.int32)
        else:
            drawn = vocabulary.ordinary[(other * len(vocabulary.ordinary)).astype(np.int64)]
        shown = np.where(fate < 0.8, shown, np.where(fate < 0.9, drawn, labels[row, place]))
    seen[row, column] = shown
    return seen, positions, labels


def _units(ids: np.ndarray, predictable: np.ndarray, vocabulary: Vocabulary, masking: Masking) -> np.ndarray:
    """bool [B,T]: the tokens at which a unit begins."""
    if masking.unit == "token":
        return predictable
    return predictable & (vocabulary.starts[ids] | _after_border(predictable))


def _after_border(predictable: np.ndarray) -> np.ndarray:
    """bool [B,T]: whether the token before is special, padding, or none."""
    after = np.ones_like(predictable)
    after[:, 1:] = ~predictable[:, :-1]
    return after


def span_lengths(random: np.ndarray, longest: int) -> np.ndarray:
    """Uniform numbers -> 1 .. longest with weights 1/n."""
    weights = np.cumsum(1 / np.arange(1, longest + 1))
    return 1 + np.searchsorted(weights[:-1] / weights[-1], random, side="right")


def spans(units: np.ndarray, predictable: np.ndarray, longest: int, random: np.ndarray) -> np.ndarray:
    """int64 [B,T]: the group that each predictable token is in, numbered from 0 in each row.

    The row's units are divided, from its begin, into spans of lengths drawn with weights 1/n; a span that reaches over
    a border is divided there.
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


def _evenly(groups: np.ndarray, predictable: np.ndarray, share: float, most: int, random: np.ndarray) -> np.ndarray:
    """bool [B,T]: the tokens of the groups chosen, by systematic sampling.

    The groups stand in a row by size, those of one size in random order, and are taken at even distances from a random
    start. So each has the same probability, and of every size as many are taken as it makes up: the tokens add up to
    the share but for about one group. What would go over ``most`` is left out.
    """
    batch, length = groups.shape
    flat = groups + np.arange(batch)[:, None] * length
    sizes = np.bincount(flat[predictable], minlength=batch * length).reshape(batch, length)
    tokens, count = predictable.sum(axis=1), (sizes > 0).sum(axis=1)
    budget = np.maximum(1, np.rint(share * tokens))
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
    """bool [B,T]: the choice of the original's generator, which stops at the first unit that reaches the budget.

    A walk over the units: a length n with weight 1/n, a window of the next ``n * int(1 / share)`` units, a span of n
    that begins at random within it. The budget is of all tokens of the row, special ones counted.
    """
    batch, length = units.shape
    number = np.maximum(np.cumsum(units, axis=1) - 1, 0)
    count = units.sum(axis=1)
    window, offset = int(1 / masking.share), np.zeros(batch, np.int64)
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
    budget = np.maximum(1, np.rint(masking.share * real.sum(axis=1)))
    before = np.cumsum(chosen, axis=1) - chosen  # targets to the left
    at_start = np.maximum.accumulate(np.where(units, before, 0), axis=1)  # of the unit's first token
    return chosen & (at_start < budget[:, None])
