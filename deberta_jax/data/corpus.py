"""Text for pre-training as tokens: of files, tokenised now, or mapped from the shards of a prepared directory."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deberta_jax.data.documents import Source, blocks, encode_block, join_parts, text_files, texts_of
from deberta_jax.data.shards import open_shards
from deberta_jax.errors import InputError
from deberta_jax.text import Tokenizer
from deberta_jax.text.bulk import BulkEncoder


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents as tokens, one after the other, without special tokens.

    Attributes:
      parts: the ids, uint16 or uint32 or int32, in one array or several; memory maps where they come from shards.
      lengths: tokens of each document, none of them 0.
      unigrams: int64 [vocab_size], how often each id occurs.
      directory: the prepared directory, where it comes from one.
    """

    parts: tuple[np.ndarray, ...]
    lengths: np.ndarray
    unigrams: np.ndarray
    cls_id: int
    sep_id: int
    pad_id: int
    directory: str = ""

    @property
    def tokens(self) -> int:
        return int(self.unigrams.sum())

    def check(self, ids: np.ndarray) -> None:
        """Refuses ids, int32, that are none: shards are mapped, not read, before they are used.

        Raises:
          InputError: the prepared directory has been damaged.
        """
        largest = int(ids.view(np.uint32).max(initial=0))  # what is beyond int32 has become negative
        if largest >= len(self.unigrams):
            raise InputError(
                f"{self.directory}: is damaged, it holds the id {largest} and the vocabulary ends at "
                f"{len(self.unigrams) - 1}; run the same `deberta-jax prepare` again, which compares every shard with "
                "its hash and says what to delete"
            )


def open_corpus(paths: Sequence[str | Path], tokenizer: Tokenizer, source: Source | None = None) -> Corpus:
    """The corpus of text files (``data.documents`` says which), or of one directory that ``prepare`` made.

    ``source`` says how files are cut into documents; for a prepared directory that is settled.

    Raises:
      InputError: files that cannot be read or have no text; a directory of another tokenizer's, or damaged.
    """
    names = [str(path) for path in paths]
    if any(Path(name).is_dir() for name in names):
        if len(names) > 1:
            raise InputError(
                f"{names[0]}, {names[1]}: of prepared directories one is taken; prepare all files together"
            )
        directory, shards = names[0], open_shards(Path(names[0]), tokenizer)
        parts, lengths, unigrams = shards.ids, shards.lengths, shards.unigrams
    else:
        directory = ""
        parts, lengths, unigrams = _tokenise(text_files(names), tokenizer, source or Source())
    return Corpus(parts, lengths, unigrams, tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, directory)


def _tokenise(
    files: list[str], tokenizer: Tokenizer, source: Source
) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    encode = BulkEncoder(tokenizer)
    ids, lengths = [], []
    for file in files:
        carried = 0
        for block in blocks(file, source):
            found, each = encode_block(encode, block, source)
            ended, carried = join_parts(each, block, carried)
            ids.append(found)
            lengths.append(ended)
    if not sum(map(len, ids)):
        raise InputError(f"{', '.join(files)}: no text; nothing but blank lines")
    whole = np.concatenate(ids)
    return (whole,), np.concatenate(lengths), np.bincount(whole, minlength=tokenizer.vocab_size)


def read_documents(path: str | Path, source: Source | None = None) -> list[str]:
    """The documents of a text file that are not blank; what ``train_tokenizer`` takes.

    Raises:
      InputError: a file that is not there, has no text or is no UTF-8.
    """
    source = source or Source()
    found = [
        text for file in text_files([str(path)]) for block in blocks(file, source) for text in texts_of(block, source)
    ]
    found = [text for text in found if text.strip()]
    if not found:
        raise InputError(f"{path}: no text; the file is empty")
    return found
