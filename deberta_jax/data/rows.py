"""Divides a corpus into rows of one length, which are read by number.

Contiguous rows are consecutive parts of the corpus, as Microsoft prepared its masked-LM data. Packed rows keep
documents apart: a document that is longer than a row fills whole rows, and the rest of it shares a row with others.

The assignment of documents to packed rows is computed from the histogram of their lengths (Krell et al. 2021,
arXiv:2107.02027; here longest first, best fit). So its cost depends on the number of different lengths, not on the
number of documents or rows.
"""

import dataclasses
import itertools
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from deberta_jax.data.corpus import Corpus
from deberta_jax.data.packing import OpenRows
from deberta_jax.errors import InputError

RowLayout = Literal["packed", "contiguous"]


@runtime_checkable
class Rows(Protocol):
    """Declares the interface of both layouts: T = ``length`` tokens per row, and the token id of padding."""

    length: int
    pad_id: int

    def __len__(self) -> int: ...

    def read(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Reads rows.

        Args:
          index: int64 [n], the numbers of the rows.

        Returns:
          input_ids int32 [n,T], and segment_ids int32 [n,T] (0: padding) or attention_mask bool [n,T].

        Raises:
          InputError: the corpus is damaged: it has ids outside the vocabulary.
        """
        ...

    def tokens(self, index: np.ndarray) -> int:
        """Returns the number of tokens in rows, including special tokens, without reading them."""
        ...


def lay_out(corpus: Corpus, length: int, layout: RowLayout) -> Rows:
    """Divides a corpus into rows of ``length`` tokens. Raises InputError if it does not fill one row."""
    return PackedRows(corpus, length) if layout == "packed" else ContiguousRows(corpus, length)


class Reader:
    """Reads consecutive tokens of a corpus, across its parts."""

    def __init__(self, corpus: Corpus):
        self.parts = corpus.parts
        self.starts = np.concatenate([[0], np.cumsum([len(part) for part in corpus.parts])])

    def into(self, out: np.ndarray, start: int) -> None:
        """Fills ``out``, int32 [n], with the tokens from number ``start`` on."""
        part = int(np.searchsorted(self.starts, start, "right")) - 1
        done = 0
        while done < len(out):
            at = start + done - int(self.starts[part])
            ids = self.parts[part][at : at + len(out) - done]
            out[done : done + len(ids)] = ids
            done += len(ids)
            part += 1


class ContiguousRows:
    """Reads contiguous rows: row i is [CLS], tokens ``i * (T-2)`` to ``(i+1) * (T-2)`` of the corpus, [SEP].

    The tokens after the last full row are not used.

    Raises:
      InputError: the corpus does not fill one row.
    """

    def __init__(self, corpus: Corpus, length: int):
        self.corpus, self.length, self.pad_id = corpus, length, corpus.pad_id
        self.reader = Reader(corpus)
        self.count = corpus.tokens // (length - 2)
        if not self.count:
            raise InputError(f"the text has {corpus.tokens} tokens; one row needs {length - 2}")

    def __len__(self) -> int:
        return self.count

    def read(self, index: np.ndarray) -> dict[str, np.ndarray]:
        ids = np.empty((len(index), self.length), np.int32)
        ids[:, 0], ids[:, -1] = self.corpus.cls_id, self.corpus.sep_id
        for row, i in zip(ids, index.tolist(), strict=True):
            self.reader.into(row[1:-1], i * (self.length - 2))
        self.corpus.check(ids)
        return {"input_ids": ids, "attention_mask": np.ones(ids.shape, bool)}

    def tokens(self, index: np.ndarray) -> int:
        return len(index) * self.length


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Describes ``repeats`` rows, each of which holds items of these sizes."""

    sizes: tuple[int, ...]
    repeats: int


def pack_histogram(counts: np.ndarray, row_length: int) -> list[Pattern]:
    """Packs items into rows: longest first, each into the fullest row that can hold it.

    Rows with the same sizes are one pattern, so the cost depends on the number of sizes, not of items.

    Args:
      counts: int [largest size + 1], the number of items of each size.
      row_length: the size of a row.
    """
    open_rows: OpenRows[Pattern] = OpenRows()
    done: list[Pattern] = []
    number = itertools.count(0, -1)  # of rows with the same room the newest is taken first

    def put(pattern: Pattern, room: int) -> None:
        if room < 1:
            done.append(pattern)
        else:
            open_rows.add(room, next(number), pattern)

    for size in np.flatnonzero(counts)[::-1].tolist():
        items = int(counts[size])
        while items:
            found = open_rows.take(size)
            if found is None:
                # Each new row holds as many items of this size as fit; the last one holds the remaining items.
                each = min(row_length // size, items)
                put(Pattern((size,) * each, items // each), row_length - each * size)
                items %= each
                continue
            room, _, pattern = found
            used = min(items, pattern.repeats)
            if used < pattern.repeats:
                put(dataclasses.replace(pattern, repeats=pattern.repeats - used), room)
            put(Pattern((*pattern.sizes, size), used), room - size)
            items -= used
    oldest_first = sorted(open_rows, key=lambda row: (row[0], -row[1]))
    return done + [pattern for _, _, pattern in oldest_first]


class PackedRows:
    """Reads packed rows, in which each document, or part of a long one, is ``[CLS] ... [SEP]`` and a segment.

    The first rows are full rows of long documents. The others hold the rests of documents, as the patterns say: a rest
    is identified by its length and its number among the rests of this length. The memory is a few numbers per document.
    """

    def __init__(self, corpus: Corpus, length: int):
        self.corpus, self.length, self.pad_id = corpus, length, corpus.pad_id
        self.reader, self.body = Reader(corpus), length - 2
        lengths = np.asarray(corpus.lengths)
        full = lengths // self.body
        self.ends = np.cumsum(lengths, dtype=np.int64)
        self.full_ends = np.cumsum(full, dtype=np.int64)
        # numpy sorts 16-bit integers in linear time.
        left = (lengths - full * self.body).astype(np.uint16 if length <= 1 << 16 else np.uint32)
        del full, lengths
        self.order = np.argsort(left, kind="stable").astype(np.int64 if len(left) >> 32 else np.uint32)
        counts = np.bincount(left)
        self.class_starts = np.cumsum(counts) - counts
        counts[0] = 0  # documents without a rest
        self.patterns = pack_histogram(np.concatenate([[0, 0], counts]), length)
        self.full = int(self.full_ends[-1])
        self.pattern_ends = np.cumsum([pattern.repeats for pattern in self.patterns], dtype=np.int64)
        self.count = self.full + (int(self.pattern_ends[-1]) if self.patterns else 0)

    def __len__(self) -> int:
        return self.count

    @cached_property
    def taken(self) -> list[list[int]]:
        """Returns for each item of each pattern the number of items of its size in earlier patterns and before it."""
        used: dict[int, int] = {}
        out = []
        for pattern in self.patterns:
            firsts = []
            for size in pattern.sizes:
                firsts.append(used.get(size, 0))
                used[size] = firsts[-1] + pattern.repeats
            out.append(firsts)
        return out

    def parts(self, row: int) -> list[tuple[int, int]]:
        """Returns (first token in the corpus, number of tokens) of each segment of a row, without special tokens."""
        if row < self.full:
            document = int(np.searchsorted(self.full_ends, row, "right"))
            before = int(self.full_ends[document - 1]) if document else 0
            start = int(self.ends[document - 1]) if document else 0
            return [(start + (row - before) * self.body, self.body)]
        row -= self.full
        which = int(np.searchsorted(self.pattern_ends, row, "right"))
        pattern = self.patterns[which]
        number = row - (int(self.pattern_ends[which]) - pattern.repeats)
        out = []
        for size, first in zip(pattern.sizes, self.taken[which], strict=True):
            document = int(self.order[self.class_starts[size - 2] + first + number])
            out.append((int(self.ends[document]) - (size - 2), size - 2))
        return out

    def read(self, index: np.ndarray) -> dict[str, np.ndarray]:
        ids = np.full((len(index), self.length), self.pad_id, np.int32)
        segments = np.zeros((len(index), self.length), np.int32)
        for k, row in enumerate(index.tolist()):
            at = 0
            for number, (start, count) in enumerate(self.parts(row), 1):
                end = at + count + 2
                ids[k, at], ids[k, end - 1] = self.corpus.cls_id, self.corpus.sep_id
                self.reader.into(ids[k, at + 1 : end - 1], start)
                segments[k, at:end] = number
                at = end
        self.corpus.check(ids)
        return {"input_ids": ids, "segment_ids": segments}

    def tokens(self, index: np.ndarray) -> int:
        packed = index[index >= self.full] - self.full
        each = np.array([sum(pattern.sizes) for pattern in self.patterns], np.int64)
        return (len(index) - len(packed)) * self.length + int(
            each[np.searchsorted(self.pattern_ends, packed, "right")].sum()
        )
