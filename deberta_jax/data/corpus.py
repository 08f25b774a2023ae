"""Opens text for pre-training as tokens: tokenises files, or maps the shards of a prepared directory into memory."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deberta_jax.data.documents import CorpusOptions, blocks, encode_block, join_parts, text_files, texts_of
from deberta_jax.data.shards import open_shards
from deberta_jax.errors import InputError
from deberta_jax.text import Tokenizer
from deberta_jax.text.bulk import BulkEncoder


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Holds the tokens of documents one after the other, without special tokens.

    Attributes:
      parts: the ids in one or several arrays of uint16, uint32 or int32; shards are mapped into memory.
      lengths: int [documents], the tokens of each document; none is 0.
      unigrams: int64 [vocab_size], how often each id occurs.
      cls_id, sep_id, pad_id: ids of the special tokens.
      directory: the prepared directory, or "" if the text was tokenised from files.
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
        """Returns the number of tokens."""
        return int(self.unigrams.sum())

    def check(self, ids: np.ndarray) -> None:
        """Checks ids, int32, that were read. Shards are mapped into memory without being read, so it is done here.

        Raises:
          InputError: an id is outside the vocabulary: the prepared directory is damaged.
        """
        largest = int(ids.view(np.uint32).max(initial=0))  # uint32 ids that do not fit int32 have become negative
        if largest >= len(self.unigrams):
            raise InputError(
                f"{self.directory}: is damaged, it holds the id {largest} and the vocabulary ends at "
                f"{len(self.unigrams) - 1}; run the same `deberta-jax prepare` again, which compares every shard with "
                "its hash and says what to delete"
            )


def open_corpus(paths: Sequence[str | Path], tokenizer: Tokenizer, source: CorpusOptions | None = None) -> Corpus:
    """Opens a corpus from text files, as in ``data.documents``, or from one directory that ``prepare`` made.

    Args:
      paths: files and patterns, or one directory.
      tokenizer: the tokenizer.
      source: how files are divided into documents. A prepared directory is already divided.

    Raises:
      InputError: a file cannot be read or has no text; the directory is damaged or was made with another tokenizer.
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
        parts, lengths, unigrams = _tokenise(text_files(names), tokenizer, source or CorpusOptions())
    return Corpus(parts, lengths, unigrams, tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, directory)


def _tokenise(
    files: list[str], tokenizer: Tokenizer, source: CorpusOptions
) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """Tokenises files and returns ``parts``, ``lengths`` and ``unigrams`` of a corpus."""
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


def read_documents(path: str | Path, source: CorpusOptions | None = None) -> list[str]:
    """Returns the documents of a text file that are not blank, for example for ``train_tokenizer``.

    Raises:
      InputError: the file does not exist, has no text or is not UTF-8.
    """
    source = source or CorpusOptions()
    found = [
        text for file in text_files([str(path)]) for block in blocks(file, source) for text in texts_of(block, source)
    ]
    found = [text for text in found if text.strip()]
    if not found:
        raise InputError(f"{path}: no text; the file is empty")
    return found
