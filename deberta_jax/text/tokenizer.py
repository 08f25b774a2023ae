"""Defines the interface of all tokenizers. The subclasses implement how text becomes pieces."""

from __future__ import annotations

import abc
import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from deberta_jax.errors import InputError
from deberta_jax.text.added import AddedTokens
from deberta_jax.text.arguments import (
    as_list,
    as_words,
    check_options,
    check_tensors,
    room_for,
    split_pairs,
    strategy,
)
from deberta_jax.text.encoding import (
    Encoding,
    Ragged,
    concatenate,
    fill,
    lengths_of,
    pad,
    padded_length,
    ranges,
    split_rows,
    whole_rows,
    window_rows,
)

SURROGATES = re.compile("[\ud800-\udfff]")

# At run time these are not Literal, because `Tokenizer.__call__` checks them with a clearer message.
if TYPE_CHECKING:
    Truncation = Literal["longest_first", "only_first", "only_second", "do_not_truncate"] | bool
    Padding = Literal["longest", "max_length", "buckets", "do_not_pad"] | bool
    Tensors = Literal["np"] | None
else:
    Truncation = Padding = str | bool
    Tensors = str | None


class Tokenizer(abc.ABC):
    """Converts text to ids and back; made by `load_tokenizer` or `train_tokenizer`.

    Tokenizers are immutable, can be pickled, and can be shared by threads. A lone surrogate, which UTF-8 cannot
    represent, is read as U+FFFD; NUL and other control characters are ordinary text. The text of a special token
    ("[MASK]", "[SEP]", ...) becomes that token, as in transformers.

    Attributes:
        kind: "spm" (v2, v3) or "bpe" (v1).
        rule: description of the files and rules that decide the pieces.
        vocab_size: number of ids that this tokenizer can produce, including [MASK]. The embedding may have more rows.
        pad_id, cls_id, sep_id, unk_id, mask_id: ids of the special tokens.
        all_special_ids: these and the ids of other added tokens marked as special, ascending.
    """

    kind: str
    rule: str
    vocab_size: int
    _word_prefix = ""

    def __init__(self, added: AddedTokens):
        self.added = added
        self.pad_id, self.cls_id, self.sep_id, self.unk_id, self.mask_id = added.special_ids
        self.all_special_ids = added.all_special_ids

    # Methods that a subclass implements. Their texts contain neither added tokens nor surrogates.

    @abc.abstractmethod
    def _encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids of all texts in one int32 array, and the number of ids of each text, int64 [len(texts)]."""

    @abc.abstractmethod
    def _spans(self, texts: list[str], ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Returns the first and last (exclusive) character of its text for each piece of `_encode(texts)`.

        A character belongs to the first piece that holds any part of it. No span begins with white space.

        Returns:
            int32 [len(ids), 2].
        """

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Returns the text of ids without added tokens, including a space with which the first piece begins."""

    @abc.abstractmethod
    def _piece(self, index: int) -> str:
        """Returns the piece with an id that is no added token. Raises InputError if there is none."""

    @abc.abstractmethod
    def _index(self, piece: str) -> int | None:
        """Returns the id of a piece that is no added token, or None if there is no such piece."""

    @abc.abstractmethod
    def _identity(self) -> Iterable[bytes]:
        """Returns everything that decides ids, except added tokens."""

    @abc.abstractmethod
    def save(self, directory: str | Path) -> None:
        """Writes the files from which `load_tokenizer` and transformers load an equal tokenizer."""

    def _cuts(self, text: str) -> list[int]:
        """Returns the positions at which a text is split into parts that are encoded separately."""
        return []

    # Text to ids.

    def __call__(
        self,
        texts: Any,
        text_pairs: Any = None,
        *,
        max_length: int | None = None,
        truncation: Truncation = "longest_first",
        padding: Padding = False,
        buckets: Sequence[int] | None = None,
        pad_to_multiple_of: int | None = None,
        stride: int | None = None,
        is_split_into_words: bool = False,
        return_offsets_mapping: bool = False,
        return_special_tokens_mask: bool = False,
        add_special_tokens: bool = True,
        return_tensors: Tensors = None,
    ) -> Encoding:
        """Encodes one text or a batch. The result always has a batch dimension.

        Args:
            texts: a string, a list of strings, or a list of pairs of strings; with `is_split_into_words` a list of
                words or a list of such lists.
            text_pairs: second segments, one for each text, unless `texts` holds pairs.
            max_length: the largest number of tokens in a row, including special tokens. None: no limit.
            truncation: the segment whose end is removed if a row is longer than `max_length`: "only_first",
                "only_second", or "longest_first" (or True), which removes one token at a time from the longer one.
                False or "do_not_truncate": none.
            padding: False or "do_not_pad" returns lists if rows differ in length; "longest" or True pads to the longest
                row, "max_length" to `max_length`, "buckets" to the smallest of `buckets` that holds the longest row.
            buckets: row lengths, ascending.
            pad_to_multiple_of: rounds the padded length up to a multiple of this.
            stride: splits a long text into rows that overlap by this number of tokens, instead of truncating it;
                `overflow_to_sample_mapping` gives the text of each row. With pairs `truncation` names the segment to
                split.
            is_split_into_words: each word is encoded on its own as a word after a space (the first one as the beginning
                of the text). A word of which normalisation leaves nothing becomes [UNK], so every word has a token.
            return_offsets_mapping: whether to return `offset_mapping`.
            return_special_tokens_mask: whether to return `special_tokens_mask`.
            add_special_tokens: False leaves [CLS] and [SEP] out.
            return_tensors: "np" or None, which mean the same.

        Returns:
            `Encoding` of int32 numpy arrays.

        Raises:
            InputError: the input is not text, options contradict each other, or a row exceeds the given lengths.
        """
        cut, fill_up = strategy("truncation", truncation), strategy("padding", padding)
        check_options(max_length, fill_up, buckets, pad_to_multiple_of, stride)
        check_tensors(return_tensors)
        if not is_split_into_words:
            texts, text_pairs = split_pairs(texts, text_pairs)
        bare = text_pairs is None and stride is None and add_special_tokens and cut != "only_second"
        if bare and not (is_split_into_words or return_offsets_mapping or return_special_tokens_mask):
            text = texts[0] if isinstance(texts, list) and len(texts) == 1 else texts
            if isinstance(text, str):
                return self._one(text, max_length, cut, fill_up, buckets, pad_to_multiple_of)
        a = self._segment(texts, "texts", is_split_into_words, return_offsets_mapping)
        b = None
        if text_pairs is not None:
            b = self._segment(text_pairs, "text_pairs", is_split_into_words, return_offsets_mapping)
            if len(a.lengths) != len(b.lengths):
                raise InputError(f"{len(a.lengths)} texts but {len(b.lengths)} text_pairs; give one pair for each text")
        if b is None and cut == "only_second":
            raise InputError("truncation='only_second' needs text_pairs")
        rows = self._rows(a, b, max_length, cut, stride, add_special_tokens)
        flat, counts = fill(rows, a, b, (self.cls_id, self.sep_id) if add_special_tokens else None)
        if not return_special_tokens_mask:
            del flat["special_tokens_mask"]
        overflow = None if stride is None else rows.sample.astype(np.int32)
        longest = int(counts.max(initial=0))
        if fill_up is False and len(counts) and counts.min() != longest:
            out = {name: split_rows(values, counts) for name, values in flat.items()}
            out["attention_mask"] = [np.ones(n, np.int32) for n in counts]
        else:
            length = padded_length(longest, fill_up, max_length, buckets, pad_to_multiple_of if fill_up else None)
            out = pad(flat, counts, length, self.pad_id)
        return Encoding(**out, overflow_to_sample_mapping=overflow)

    def _one(self, text: str, max_length: Any, truncation: Any, padding: Any, buckets: Any, multiple: Any) -> Encoding:
        """Encodes one text as `[CLS] text [SEP]`, without the batch operations, which cost more than a short text."""
        ids = self._pieces([text], False).ids
        if max_length is not None:
            ids = ids[: room_for(max_length, 2) if truncation else None]
        count = len(ids) + 2
        length = padded_length(count, padding, max_length, buckets, multiple)
        input_ids = np.full((1, length), self.pad_id, np.int32)
        input_ids[0, 0] = self.cls_id
        input_ids[0, 1 : count - 1] = ids
        input_ids[0, count - 1] = self.sep_id
        mask = np.zeros((1, length), np.int32)
        mask[0, :count] = 1
        return Encoding(input_ids, mask, np.zeros((1, length), np.int32))

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes texts without special tokens.

        Returns:
            The ids of all texts one after the other, int32 [sum of lengths], and the number of ids of each text,
            int64 [len(texts)].

        Raises:
            InputError: something is not text.
        """
        pieces = self._segment(texts, "texts", False, False)
        return pieces.ids, pieces.lengths

    def encode_ragged(
        self,
        texts: Any,
        text_pairs: Any = None,
        max_length: int | None = None,
        truncation: Truncation = "longest_first",
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Encodes texts for training, with special tokens. Args and Raises as `__call__`.

        Returns:
            (input_ids, token_type_ids) of each text, both int32 [T_i].
        """
        enc = self(texts, text_pairs, max_length=max_length, truncation=truncation)
        return list(zip(enc.input_ids, enc.token_type_ids, strict=True))

    def _rows(self, a: Ragged, b: Ragged | None, max_length: int | None, truncation: Any, stride: Any, special: bool):
        """Returns which pieces make up each row. Raises InputError as `__call__`."""
        room = None
        if max_length is not None:
            room = room_for(max_length, (2 if b is None else 3) if special else 0)
        b_lengths = np.zeros_like(a.lengths) if b is None else b.lengths
        if stride is None:
            return whole_rows(a.lengths, b_lengths, room, truncation)
        if room is None or truncation is False:
            raise InputError("stride needs max_length and a truncation that names the segment to split")
        if b is not None and truncation == "longest_first":
            raise InputError("stride with text_pairs needs truncation='only_first' or 'only_second'")
        return window_rows(a.lengths, b_lengths, room, stride, truncation == "only_second")

    def _segment(self, texts: Any, name: str, words: bool, spans: bool) -> Ragged:
        """Returns the pieces of an argument of `__call__`, which `name` names in messages."""
        if words:
            return self._word_pieces(as_words(texts, name), spans)
        batch = [texts] if isinstance(texts, str) else as_list(texts, name)
        for i, text in enumerate(batch):
            if not isinstance(text, str):
                raise InputError(f"{name}[{i}] is {type(text).__name__}, not str; convert it or leave it out")
        return self._pieces(batch, spans)

    def _pieces(self, texts: list[str], spans: bool) -> Ragged:
        """Returns the pieces of texts, which may contain added tokens and lone surrogates."""
        try:
            return self._pieces_of(texts, spans)
        except (RuntimeError, TypeError, UnicodeEncodeError):
            # The libraries refuse lone surrogates with different errors. Searching each text first would cost time.
            clean = [SURROGATES.sub("\ufffd", text) for text in texts]
            if clean == texts:
                raise
        return self._pieces_of(clean, spans)

    def _pieces_of(self, texts: list[str], spans: bool) -> Ragged:
        """Returns the pieces of texts without surrogates, with their spans on request."""
        if not self._must_cut(texts):
            ids, lengths = self._encode(texts)
            return Ragged(ids, lengths, self._spans(texts, ids, lengths) if spans else None)
        chunks = [self._chunks(text) for text in texts]
        ordinary = [text[i:j] for text, parts in zip(texts, chunks, strict=True) for i, j, token in parts if token < 0]
        ids, lengths = self._encode(ordinary)
        of_text = iter(split_rows(ids, lengths))
        of_text_spans = iter(split_rows(self._spans(ordinary, ids, lengths), lengths) if spans else ())
        pieces, found_spans, counts = [], [], []
        for parts in chunks:
            before = len(pieces)
            for start, end, token in parts:
                pieces.append(next(of_text) if token < 0 else np.array([token], np.int32))
                if spans:
                    found_spans.append(next(of_text_spans) + start if token < 0 else np.array([[start, end]]))
            counts.append(sum(map(len, pieces[before:])))
        flat_spans = np.concatenate([np.zeros((0, 2)), *found_spans]).astype(np.int32) if spans else None
        return Ragged(concatenate(pieces), np.array(counts, np.int64), flat_spans)

    def _must_cut(self, texts: list[str]) -> bool:
        """Returns whether any text must be split before it is encoded."""
        search = self.added.pattern.search
        return any(search(text) is not None for text in texts)

    def _chunks(self, text: str) -> list[tuple[int, int, int]]:
        """Splits a text into (start, end, id of the added token or -1), in order, without empty parts."""
        out = []
        for start, end, token in self.added.find(text):
            edges = [0, *self._cuts(text[start:end]), end - start] if token < 0 else [0, end - start]
            out += [(start + i, start + j, token) for i, j in pairwise(edges) if i < j]
        return out

    def _word_pieces(self, samples: list[list[str]], spans: bool) -> Ragged:
        """Returns the pieces of texts that are split into words. Each distinct word of the batch is encoded once."""
        prefixes = [self._word_prefix if i and word else "" for words in samples for i, word in enumerate(words)]
        keys = [prefix + word for prefix, word in zip(prefixes, chain.from_iterable(samples), strict=True)]
        table = {key: index for index, key in enumerate(dict.fromkeys(keys))}
        pieces = self._fill_empty(self._pieces(list(table), spans))
        which = np.fromiter((table[key] for key in keys), np.int64, len(keys))
        count = pieces.lengths[which]
        source = ranges((np.cumsum(pieces.lengths) - pieces.lengths)[which], count)
        of_words = None
        if pieces.spans is not None:
            of_words = np.maximum(pieces.spans[source] - np.repeat(lengths_of(prefixes), count)[:, None], 0)
        words_each = lengths_of(samples)
        word_ids = np.repeat(ranges(np.zeros_like(words_each), words_each), count).astype(np.int32)
        edges = np.append(0, np.cumsum(count))[np.append(0, np.cumsum(words_each))]
        return Ragged(pieces.ids[source], np.diff(edges), of_words, word_ids)

    def _fill_empty(self, pieces: Ragged) -> Ragged:
        """Gives every text without any piece an [UNK] with an empty span."""
        empty = np.flatnonzero(pieces.lengths == 0)
        at = np.cumsum(pieces.lengths)[empty]
        spans = None if pieces.spans is None else np.insert(pieces.spans, at, 0, axis=0)
        return Ragged(np.insert(pieces.ids, at, self.unk_id), np.maximum(pieces.lengths, 1), spans)

    # Ids to text.

    @overload
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...
    @overload
    def decode(self, ids: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]: ...
    @overload
    def decode(self, ids: Any, skip_special_tokens: bool = True) -> Any: ...
    def decode(self, ids: Any, skip_special_tokens: bool = True) -> Any:
        """Decodes ids.

        Args:
            ids: int [T], or a batch as an array [B, T] or a list of rows.
            skip_special_tokens: whether to leave out special tokens.

        Returns:
            A string for [T], a list of strings for a batch.

        Raises:
            InputError: an id that this tokenizer cannot produce, such as that of an unused embedding row.
        """
        rows = ids.tolist() if isinstance(ids, np.ndarray) else [int(i) if np.ndim(i) == 0 else i for i in ids]
        if rows and not isinstance(rows[0], int):
            return [self.decode(row, skip_special_tokens) for row in rows]
        special = set(self.all_special_ids)
        text, ordinary = "", []
        for index in rows:
            if not 0 <= index < self.vocab_size:
                raise InputError(f"id {index} is no token of this vocabulary of {self.vocab_size}")
            if skip_special_tokens and index in special:
                continue
            if index in self.added.by_id:
                text += (self._decode(ordinary) if ordinary else "") + self.added.by_id[index].content
                ordinary = []
            else:
                ordinary.append(index)
        text += self._decode(ordinary) if ordinary else ""
        return self._trim(text)

    def _trim(self, text: str) -> str:
        """Removes what encoding inserted before the first word."""
        return text

    def id_to_token(self, index: int) -> str:
        """Returns the piece with this id. Raises InputError for an id that this tokenizer cannot produce."""
        if not 0 <= index < self.vocab_size:
            raise InputError(f"id {index} is no token of this vocabulary of {self.vocab_size}")
        return self.added.by_id[index].content if index in self.added.by_id else self._piece(index)

    def token_to_id(self, token: str) -> int:
        """Returns the id of a piece, or `unk_id` for a string that is no piece."""
        if token in self.added.by_content:
            return self.added.by_content[token].id
        index = self._index(token)
        return self.unk_id if index is None else index

    def fingerprint(self) -> str:
        """Returns a SHA-256 in hex of everything that decides ids. Equal fingerprints mean equal ids for every text."""
        digest = hashlib.sha256(f"{self.kind}\0{self.added.identity()}\0".encode())
        for part in self._identity():
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.vocab_size} ids; {self.rule})"
