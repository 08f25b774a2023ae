"""Implements the tokenizer of a directory that has only tokenizer.json.

The `tokenizers` library does everything, including normalisation and added tokens, with two exceptions. The template is
always [CLS] A [SEP] B [SEP], because files saved by transformers 5 for v1 have another one. In byte-level BPE [MASK]
includes the space before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict
from itertools import chain
from typing import Any

import numpy as np
import tokenizers

from deberta_jax import storage
from deberta_jax.errors import InputError, brief
from deberta_jax.text.added import AddedTokens, write_tokenizer_json
from deberta_jax.text.bpe import after_space, library_errors
from deberta_jax.text.encoding import lengths_of
from deberta_jax.text.json_file import vocabulary_of
from deberta_jax.text.tokenizer import Tokenizer

SPACE = "\u2581"


class JsonTokenizer(Tokenizer):
    """Tokenizes with the `tokenizers` library as tokenizer.json says.

    Args:
        content: the content of the file, as `check_content` returns it.
        added: special and other added tokens.
        where: the name of the file, for messages.

    Raises:
        InputError: the library cannot read or use the file, or other files give an added token another id.
    """

    def __init__(self, content: dict[str, Any], added: AddedTokens, where: str):
        super().__init__(added)
        self.kind = "bpe" if content["model"]["type"] == "BPE" else "spm"
        self._word_prefix = " " if self.kind == "bpe" else ""
        self.rule = f"tokenizer.json: the tokenizers library decides ({content['model']['type']})"
        self._where = where
        tokens = [dict(entry) for entry in content["added_tokens"]]
        listed = {entry["content"] for entry in tokens}
        pieces = vocabulary_of(content["model"])
        # A special token that is only a piece would be cut into other pieces where it stands in a text.
        tokens += [
            {"normalized": False, **asdict(token)}
            for token in added.tokens
            if token.content not in listed and token.content in pieces
        ]
        for entry in tokens:
            entry["lstrip"] = entry.get("lstrip") or (self.kind == "bpe" and entry["content"] == "[MASK]")
            # As for the other kinds of files: [MASK] beside a letter is [MASK] all the same.
            entry["single_word"] = bool(entry.get("single_word")) and entry["content"] != "[MASK]"
        self.content = content | {"added_tokens": tokens}
        with self._library_errors("cannot be read"):
            self._library = tokenizers.Tokenizer.from_str(json.dumps(self.content))
        for token in added.tokens:
            there = self._library.token_to_id(token.content)
            if there != token.id:
                raise InputError(
                    f"{brief(token.content)} is {token.id} in the other tokenizer files, {there} in tokenizer.json"
                )
            if self._library.id_to_token(token.id) != token.content:
                other = brief(self._library.id_to_token(token.id))
                raise InputError(f"{where}: {brief(token.content)} and {other} share the id {token.id}; correct it")
        vocab = self._library.get_vocab()
        self.vocab_size = max(vocab.values()) + 1
        self._blank = np.zeros(self.vocab_size, bool)
        self._blank[[index for piece, index in vocab.items() if not piece.strip(SPACE)]] = True

    def _library_errors(self, what: str) -> AbstractContextManager[None]:
        """Converts errors of the library in the block to InputError."""
        return library_errors(f"{self._where} {what}", "; fetch it again")

    def _encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        with self._library_errors("fails on a text"):
            rows = [row.ids for row in self._library.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = lengths_of(rows)
        return np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths

    def _spans(self, texts: list[str], ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        with self._library_errors("fails on a text"):
            rows = self._library.encode_batch(texts, add_special_tokens=False)
        sizes = lengths_of(texts)
        origin = np.repeat(np.cumsum(sizes) - sizes, lengths)
        spans = np.array([span for row in rows for span in row.offsets], np.int64).reshape(-1, 2) + origin[:, None]
        solid = after_space("".join(texts))
        # The library gives the "▁" that it inserts before a text the span of the character after it.
        blank = self._blank[ids]
        spans[blank, 1] = np.minimum(solid[spans[blank, 0]], spans[blank, 1])
        # The library gives each part of a character the span of the whole character. Here the first part has the
        # character and the others have an empty span.
        last = np.maximum.accumulate(spans[:, 1])
        first = np.maximum(spans[:, 0], np.append(0, last)[: len(last)])
        return (np.stack([np.minimum(solid[first], last), last], axis=1) - origin[:, None]).astype(np.int32)

    def _must_cut(self, texts: list[str]) -> bool:
        return False

    def _decode(self, ids: list[int]) -> str:
        with self._library_errors("cannot decode ids"):
            text = self._library.decode(ids, skip_special_tokens=False)
        return f" {text}" if self._piece(ids[0]).startswith(SPACE) else text

    def _trim(self, text: str) -> str:
        return text.removeprefix(" ") if self.kind == "spm" else text

    def _piece(self, index: int) -> str:
        piece = self._library.id_to_token(index)
        if piece is None:
            raise InputError(f"id {index} is no token of this vocabulary")
        return piece

    def _index(self, piece: str) -> int | None:
        return self._library.token_to_id(piece)

    def _identity(self) -> Iterable[bytes]:
        return [json.dumps(self.content, sort_keys=True).encode()]

    def save(self, directory: str | storage.AnyPath) -> None:
        """Writes tokenizer.json and tokenizer_config.json."""
        directory = storage.as_path(directory)
        storage.make_directory(directory)
        write_tokenizer_json(directory / "tokenizer.json", self.content)
        name = "DebertaTokenizer" if self.kind == "bpe" else "DebertaV2Tokenizer"
        write_tokenizer_json(directory / "tokenizer_config.json", {"tokenizer_class": name})
