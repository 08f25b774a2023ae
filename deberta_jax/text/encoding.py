"""Defines what a tokenizer returns, and computes it from pieces: templates, truncation, windows, padding.

A batch of texts of different lengths is held as one flat array with the length of each text, so each function handles
any number of texts in a few numpy operations.
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


@dataclass(frozen=True, repr=False)
class Encoding:
    """Holds a batch of encoded texts; `enc.input_ids` and `enc["input_ids"]` are the same.

    Every field is int32 [B, T]. With `padding=False` and rows of different lengths it is a list of B arrays [T_i].

    Attributes:
        input_ids: token ids; padding is the tokenizer's `pad_id`.
        attention_mask: 1 for tokens, 0 for padding.
        token_type_ids: 0 for `[CLS] A [SEP]` and padding, 1 for `B [SEP]`.
        offset_mapping: [B, T, 2], start and end of the token in Unicode code points of its text (of its word, for
            pre-split words). Special tokens and padding have (0, 0). A token that stands for a space alone, or for a
            later part of one character, has an empty span at its position. Only with `return_offsets_mapping`.
        special_tokens_mask: 1 for [CLS], [SEP] and padding. Only with `return_special_tokens_mask`.
        overflow_to_sample_mapping: [B], the index of the text of which each row is a window. Only with `stride`.
        word_ids: index of the token's word in its list of words, -1 for special tokens and padding. Only with
            `is_split_into_words`.
    """

    input_ids: Any
    attention_mask: Any
    token_type_ids: Any
    offset_mapping: Any = None
    special_tokens_mask: Any = None
    overflow_to_sample_mapping: Any = None
    word_ids: Any = None

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {_shape(getattr(self, name))}" for name in self.keys())
        return f"Encoding({shapes})"

    def keys(self) -> list[str]:
        """Returns the names of the fields that are not None. Together with `[]`, `dict(enc)` and `f(**enc)` work."""
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(f"{name}: this encoding holds {', '.join(self.keys())}")
        return getattr(self, name)


def _shape(value: Any) -> str:
    """Returns the shape of a field; of rows of different lengths their number."""
    return f"{list(value.shape)}" if hasattr(value, "shape") else f"of {len(value)} rows"


@dataclass(frozen=True)
class Ragged:
    """Holds the pieces of N texts without special tokens, as flat arrays with the number of pieces of each text."""

    ids: np.ndarray  # int32 [sum(lengths)]
    lengths: np.ndarray  # int64 [N]
    spans: np.ndarray | None = None  # int32 [sum(lengths), 2]
    words: np.ndarray | None = None  # int32 [sum(lengths)]


@dataclass(frozen=True)
class EncodedRows:
    """Says which pieces make up each row: of text `sample[r]` those from start to start + count, for both segments.

    All fields are int64 [R]; starts count from the first piece of the text's own segment.
    """

    sample: np.ndarray
    a_start: np.ndarray
    a_count: np.ndarray
    b_start: np.ndarray
    b_count: np.ndarray


def concatenate(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenates arrays to one of int32; no arrays give an empty one."""
    return np.concatenate(rows).astype(np.int32, copy=False) if rows else np.zeros(0, np.int32)


def lengths_of(rows: Sequence[Any]) -> np.ndarray:
    """Returns the length of each element, int64 [len(rows)]."""
    return np.fromiter(map(len, rows), np.int64, len(rows))


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Computes `concatenate([arange(s, s + c) for s, c in zip(starts, counts)])`."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


def longest_first(a: np.ndarray, b: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes segment lengths after removing pieces one at a time from the longer segment until `room` are left.

    If both are cut and `room` is odd, the longer segment keeps one piece more; of two equally long ones, the second
    does. This is the rule of the `tokenizers` library.

    Args:
        a, b: int64 [N], pieces of the first and second segments.
        room: pieces that a row can hold beside special tokens.

    Returns:
        Two int64 [N]: the pieces kept of each segment.
    """
    short, long = np.minimum(a, b), np.maximum(a, b)
    half = room // 2
    cut_long = np.maximum(half + room % 2, room - short)
    keep_long = np.where(a + b > room, np.minimum(long, cut_long), long)
    keep_short = np.where(a + b > room, np.minimum(short, half), short)
    return np.where(a > b, keep_long, keep_short), np.where(a > b, keep_short, keep_long)


def truncate(a: np.ndarray, b: np.ndarray, room: int, strategy: str | bool) -> tuple[np.ndarray, np.ndarray]:
    """Computes how many pieces of each segment a truncation strategy keeps.

    Args:
        a, b: int64 [N], pieces of the first and second segments.
        room: pieces that a row can hold beside special tokens.
        strategy: one of `TRUNCATIONS`.

    Returns:
        Two int64 [N]: the pieces kept of the first and second segments.

    Raises:
        InputError: with `only_first` or `only_second` the other segment alone is longer than `room`.
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


def whole_rows(a: np.ndarray, b: np.ndarray, room: int | None, strategy: str | bool) -> EncodedRows:
    """Returns one row per text, truncated at the end. Args and Raises as `truncate`; `room` None keeps all."""
    zeros = np.zeros_like(a)
    a_count, b_count = (a, b) if room is None else truncate(a, b, room, strategy)
    return EncodedRows(np.arange(len(a)), zeros, a_count, zeros, b_count)


def window_rows(a: np.ndarray, b: np.ndarray, room: int, stride: int, split_second: bool) -> EncodedRows:
    """Splits one segment into windows that overlap by `stride` pieces, and repeats the other one in each row.

    Args:
        a, b: int64 [N], pieces of the first and second segments.
        room: pieces that a row can hold beside special tokens.
        stride: pieces that two consecutive windows have in common.
        split_second: whether the second segment is split; otherwise the first.

    Raises:
        InputError: the repeated segment leaves no more than `stride` pieces for the window.
    """
    moving, fixed = (b, a) if split_second else (a, b)
    size = room - fixed
    long = moving > size
    bad = np.flatnonzero(long & (size <= stride))
    if len(bad):
        raise InputError(
            f"text {bad[0]}: max_length leaves {max(int(size[bad[0]]), 0)} tokens for a window, which stride={stride} "
            "does not fit into; lower stride or raise max_length"
        )
    step = np.where(long, size - stride, 1)
    windows = np.where(long, -(-(moving - size) // step) + 1, 1)
    sample = np.repeat(np.arange(len(a)), windows)
    start = ranges(np.zeros_like(windows), windows) * step[sample]
    count = np.minimum(moving[sample] - start, size[sample])
    zeros = np.zeros_like(start)
    if split_second:
        return EncodedRows(sample, zeros, a[sample], start, count)
    return EncodedRows(sample, start, count, zeros, b[sample])


def padded_length(
    longest: int,
    padding: str | bool,
    max_length: int | None,
    buckets: Sequence[int] | None,
    multiple: int | None,
) -> int:
    """Computes the length T to which a batch is padded.

    Args:
        longest: tokens of the longest row.
        padding: one of `PADDINGS`.
        max_length: the length for "max_length".
        buckets: the lengths for "buckets", ascending.
        multiple: T is rounded up to a multiple of this.

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


def fill(rows: EncodedRows, a: Ragged, b: Ragged | None, template: tuple[int, int] | None) -> tuple[dict, np.ndarray]:
    """Builds `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]` for every row.

    Args:
        rows: which pieces make up each row.
        a: pieces of the first segments.
        b: pieces of the second segments, or None.
        template: the ids of [CLS] and [SEP]; None leaves special tokens out.

    Returns:
        The fields of `Encoding` as flat int32 arrays [sum of lengths], and the length of each row, int64 [R].
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
        out["offset_mapping"] = np.zeros((total, 2), np.int32)
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
    for pieces, begin, count, position in segments:
        source = ranges((np.cumsum(pieces.lengths) - pieces.lengths)[rows.sample] + begin, count)
        target = ranges(position, count)
        out["input_ids"][target] = pieces.ids[source]
        out["special_tokens_mask"][target] = 0
        if pieces.spans is not None:
            out["offset_mapping"][target] = pieces.spans[source]
        if pieces.words is not None:
            out["word_ids"][target] = pieces.words[source]
    return out, counts


PAD_VALUES = {"token_type_ids": 0, "special_tokens_mask": 1, "offset_mapping": 0, "word_ids": -1, "attention_mask": 0}


def pad(flat: dict, counts: np.ndarray, length: int, pad_id: int) -> dict:
    """Pads flat fields to int32 arrays [B, T] and adds `attention_mask`.

    Args:
        flat: the fields of `fill`.
        counts: int64 [B], the length of each row.
        length: T.
        pad_id: the token id of padding.
    """
    real = np.arange(length) < counts[:, None]
    out = {"attention_mask": real.astype(np.int32)}
    for name, values in flat.items():
        shape = (len(counts), length, *values.shape[1:])
        out[name] = np.full(shape, PAD_VALUES.get(name, pad_id), np.int32)
        out[name][real] = values
    return out


def split_rows(values: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """Splits a flat field into one view per row."""
    edges = [0, *np.cumsum(counts).tolist()]
    return [values[i:j] for i, j in pairwise(edges)]
