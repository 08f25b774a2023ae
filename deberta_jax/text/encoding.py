"""What a tokenizer returns, and the arithmetic between pieces and that: templates, truncation, windows, padding.

Everything here works on ragged batches held as flat arrays, so one numpy expression serves one text or a million.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np

from deberta_jax.errors import InputError

TRUNCATIONS = ("longest_first", "only_first", "only_second", False)
PADDINGS = (False, "longest", "max_length", "buckets")


@dataclass(frozen=True)
class Encoding:
    """A batch of texts as the model takes it; `enc.input_ids` and `enc["input_ids"]` are the same thing.

    Every field is int32 of shape [B, T], or with `padding=False` and rows of unequal length a list of B arrays [T_i].

    Attributes:
        input_ids: token ids; padding is the tokenizer's `pad_id`.
        attention_mask: 1 for tokens, 0 for padding.
        token_type_ids: 0 for `[CLS] A [SEP]` and padding, 1 for `B [SEP]`.
        offsets: [B, T, 2], start and end in Unicode code points of the text that the token comes from (of the word,
            for pre-split words). Special tokens and padding have (0, 0); a token that stands for a space alone, or for
            a later part of one character, has an empty span in its place. Only with `return_offsets`.
        special_tokens_mask: 1 for [CLS], [SEP] and padding. Only with `return_special_tokens_mask`.
        overflow_to_sample: [B], the index of the input that each row is a window of. Only with `stride`.
        word_ids: index of the token's word in its list of words, -1 for special tokens and padding. Only with
            `is_split_into_words`.
    """

    input_ids: Any
    attention_mask: Any
    token_type_ids: Any
    offsets: Any = None
    special_tokens_mask: Any = None
    overflow_to_sample: Any = None
    word_ids: Any = None

    def keys(self) -> list[str]:
        """Names of the fields that are there; with `[]` this makes `dict(enc)` and `f(**enc)` work."""
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(f"{name}: this encoding holds {', '.join(self.keys())}")
        return getattr(self, name)


@dataclass(frozen=True)
class Ragged:
    """The pieces of N texts without special tokens: flat arrays and how many belong to each text."""

    ids: np.ndarray  # int32 [sum(lengths)]
    lengths: np.ndarray  # int64 [N]
    spans: np.ndarray | None = None  # int32 [sum(lengths), 2]
    words: np.ndarray | None = None  # int32 [sum(lengths)]


@dataclass(frozen=True)
class Rows:
    """Which slice of which text makes each row: row r is text `sample[r]`, pieces start .. start + count."""

    sample: np.ndarray  # [R]
    a_start: np.ndarray  # [R], into the pieces of its text
    a_count: np.ndarray
    b_start: np.ndarray
    b_count: np.ndarray


def concatenate(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(rows).astype(np.int32, copy=False) if rows else np.zeros(0, np.int32)


def lengths_of(rows: Sequence[Any]) -> np.ndarray:
    return np.fromiter(map(len, rows), np.int64, len(rows))


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`concatenate([arange(s, s + c) for s, c in zip(starts, counts)])`."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


def longest_first(a: np.ndarray, b: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths after taking one piece at a time from the end of the longer segment until `room` is kept.

    Where both are cut and `room` is odd, the odd piece stays with the longer one, and with the second of two equally
    long: the rule of the `tokenizers` library.
    """
    short, long = np.minimum(a, b), np.maximum(a, b)
    half = room // 2
    cut_long = np.maximum(half + room % 2, room - short)
    keep_long = np.where(a + b > room, np.minimum(long, cut_long), long)
    keep_short = np.where(a + b > room, np.minimum(short, half), short)
    return np.where(a > b, keep_long, keep_short), np.where(a > b, keep_short, keep_long)


def truncate(a: np.ndarray, b: np.ndarray, room: int, strategy: str | bool) -> tuple[np.ndarray, np.ndarray]:
    """Pieces kept of each segment; segments never change places. `room`: pieces a row may hold beside special tokens.

    Raises:
        InputError: the segment that `only_first` / `only_second` may cut is shorter than what has to go.
    """
    if strategy is False:
        return a, b
    if strategy == "longest_first":
        return longest_first(a, b, room)
    cut, fixed = (a, b) if strategy == "only_first" else (b, a)
    bad = np.flatnonzero(fixed > room)
    if len(bad):
        which = "second" if strategy == "only_first" else "first"
        raise InputError(
            f"text {bad[0]}: its {which} segment alone has {fixed[bad[0]]} tokens and max_length leaves {room}, "
            f"so truncation={strategy!r} cannot help; raise max_length or pass truncation='longest_first'"
        )
    cut = np.minimum(cut, room - fixed)
    return (cut, fixed) if strategy == "only_first" else (fixed, cut)


def whole_rows(a: np.ndarray, b: np.ndarray, room: int | None, strategy: str | bool) -> Rows:
    """One row a text, cut at the end."""
    zeros = np.zeros_like(a)
    a_count, b_count = (a, b) if room is None else truncate(a, b, room, strategy)
    return Rows(np.arange(len(a)), zeros, a_count, zeros, b_count)


def window_rows(a: np.ndarray, b: np.ndarray, room: int, stride: int, slide_second: bool) -> Rows:
    """One segment slides in windows that overlap by `stride` pieces; the other is repeated whole in each.

    Raises:
        InputError: the other segment leaves no more than `stride` pieces for the window.
    """
    slide, fixed = (b, a) if slide_second else (a, b)
    width = room - fixed
    long = slide > width
    bad = np.flatnonzero(long & (width <= stride))
    if len(bad):
        raise InputError(
            f"text {bad[0]}: max_length leaves {max(int(width[bad[0]]), 0)} tokens for a window, which stride={stride} "
            "does not fit into; lower stride or raise max_length"
        )
    step = np.where(long, width - stride, 1)
    windows = np.where(long, -(-(slide - width) // step) + 1, 1)
    sample = np.repeat(np.arange(len(a)), windows)
    start = ranges(np.zeros_like(windows), windows) * step[sample]
    count = np.minimum(slide[sample] - start, width[sample])
    zeros = np.zeros_like(start)
    if slide_second:
        return Rows(sample, zeros, a[sample], start, count)
    return Rows(sample, start, count, zeros, b[sample])


def padded_length(
    longest: int,
    padding: str | bool,
    max_length: int | None,
    buckets: Sequence[int] | None,
    multiple: int | None,
) -> int:
    """T of the padded batch.

    Raises:
        InputError: a row is longer than `max_length` or than every bucket.
    """
    length = longest
    if padding == "max_length":
        length = max_length or 0
    elif padding == "buckets":
        length = next((size for size in buckets or () if size >= longest), 0)
    if length < longest:
        limit = f"max_length={max_length}" if padding == "max_length" else f"the largest bucket, {max(buckets or ())}"
        raise InputError(f"a text has {longest} tokens, more than {limit}; pass max_length and a truncation")
    return length if multiple is None else -(-length // multiple) * multiple


def fill(rows: Rows, a: Ragged, b: Ragged | None, template: tuple[int, int] | None) -> tuple[dict, np.ndarray]:
    """`[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]` for every row, as flat fields, and the length of each row.

    `template` holds the ids of [CLS] and [SEP], or is None for bare pieces.
    """
    edge = 0 if template is None else 1
    pair = b is not None
    first = rows.a_count + 2 * edge
    counts = first + (rows.b_count + edge if pair else 0)
    ends = np.cumsum(counts)
    starts = ends - counts
    total = int(ends[-1]) if len(ends) else 0
    out: dict[str, np.ndarray] = {
        "input_ids": np.empty(total, np.int32),
        "token_type_ids": np.zeros(total, np.int32),
        "special_tokens_mask": np.ones(total, np.int32),
    }
    if a.spans is not None:
        out["offsets"] = np.zeros((total, 2), np.int32)
    if a.words is not None:
        out["word_ids"] = np.full(total, -1, np.int32)
    if template is not None:
        out["input_ids"][starts] = template[0]
        out["input_ids"][starts + first - 1] = template[1]
        if pair:
            out["input_ids"][ends - 1] = template[1]
    segments = [(a, rows.a_start, rows.a_count, starts + edge)]
    if b is not None:
        segments.append((b, rows.b_start, rows.b_count, starts + first))
        out["token_type_ids"][ranges(starts + first, rows.b_count + edge)] = 1
    for pieces, begin, count, place in segments:
        source = ranges((np.cumsum(pieces.lengths) - pieces.lengths)[rows.sample] + begin, count)
        target = ranges(place, count)
        out["input_ids"][target] = pieces.ids[source]
        out["special_tokens_mask"][target] = 0
        if pieces.spans is not None:
            out["offsets"][target] = pieces.spans[source]
        if pieces.words is not None:
            out["word_ids"][target] = pieces.words[source]
    return out, counts


PAD_VALUES = {"token_type_ids": 0, "special_tokens_mask": 1, "offsets": 0, "word_ids": -1, "attention_mask": 0}


def pad(flat: dict, counts: np.ndarray, length: int, pad_id: int) -> dict:
    """Flat fields -> [B, T] arrays."""
    real = np.arange(length) < counts[:, None]
    out = {"attention_mask": real.astype(np.int32)}
    for name, values in flat.items():
        shape = (len(counts), length, *values.shape[1:])
        out[name] = np.full(shape, PAD_VALUES.get(name, pad_id), np.int32)
        out[name][real] = values
    return out


def split(values: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """A flat field -> one view a row."""
    edges = [0, *np.cumsum(counts).tolist()]
    return [values[i:j] for i, j in pairwise(edges)]
