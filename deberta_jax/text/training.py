"""Trains vocabularies: SentencePiece unigram as in v3, byte-level BPE as in v1."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import trainers

from deberta_jax.errors import InputError
from deberta_jax.text.added import SPECIALS, AddedToken, AddedTokens
from deberta_jax.text.bpe import BYTES, ByteLevelTokenizer, byte_level_bpe
from deberta_jax.text.loading import load_tokenizer
from deberta_jax.text.spm import SentencePieceTokenizer
from deberta_jax.text.tokenizer import SURROGATES, Tokenizer

# SentencePiece silently skips lines of more bytes than this: 16 MiB.
LONGEST_LINE = 1 << 24
# The result of SentencePiece's training depends on the number of threads, so the number is the same on all machines.
TRAINING_THREADS = 16

# These characters always get pieces. transformers reads spm.model without its byte fallback, so a character of plain
# English without a piece would be [UNK] there and bytes here.
PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


def train_tokenizer(
    lines: Iterable[Any],
    vocab_size: int,
    directory: str | Path,
    *,
    kind: str = "spm",
    character_coverage: float = 0.9995,
) -> Tokenizer:
    """Trains a vocabulary on text, writes its files and loads them. The same lines give the same files everywhere.

    Args:
        lines: strings, which are consumed once.
        vocab_size: number of pieces, including [PAD] 0, [CLS] 1, [SEP] 2 and [UNK] 3. [MASK] gets the id after them,
            so the tokenizer's own `vocab_size` and the embedding need one more.
        directory: directory of the files; made if it does not exist.
        kind: "spm" for SentencePiece unigram with byte fallback and the nmt_nfkc normaliser (v2, v3: spm.model,
            added_tokens.json), "bpe" for byte-level BPE (v1: vocab.json, merges.txt).
        character_coverage: only for "spm": fraction of the characters of the text that get pieces of their own. The
            others are encoded as bytes. Printable ASCII always gets pieces.

    Returns:
        The tokenizer, loaded from `directory`.

    Raises:
        InputError: the text has too little variety for so many pieces, or too many characters for so few.
    """
    if kind == "spm":
        tokenizer = _train_sentencepiece(_checked(lines), vocab_size, character_coverage)
    elif kind == "bpe":
        tokenizer = _train_byte_level(_checked(lines), vocab_size)
    else:
        raise InputError(f"kind={kind!r}; it is 'spm' or 'bpe'")
    tokenizer.save(directory)
    return load_tokenizer(directory, rule="sentencepiece" if kind == "spm" else "bpe")


def _train_sentencepiece(lines: Iterator[str], vocab_size: int, character_coverage: float) -> Tokenizer:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=lines,
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            byte_fallback=True,
            normalization_rule_name="nmt_nfkc",
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece=SPECIALS[0],
            bos_piece=SPECIALS[1],
            eos_piece=SPECIALS[2],
            unk_piece=SPECIALS[3],
            required_chars=PRINTABLE,
            max_sentence_length=LONGEST_LINE,
            num_threads=TRAINING_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(_why_not(str(error), vocab_size)) from error
    return SentencePieceTokenizer(
        sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()),
        _special(vocab_size),
        do_lower_case=False,
        split_by_punct=False,
        rule="trained",
    )


def _train_byte_level(lines: Iterator[str], vocab_size: int) -> Tokenizer:
    library = byte_level_bpe({}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS[:4]),
        initial_alphabet=sorted(BYTES),
        show_progress=False,
    )
    library.train_from_iterator(lines, trainer)
    model = json.loads(library.to_str())["model"]
    count = len(model["vocab"])
    if count > vocab_size:
        raise InputError(
            f"vocab_size={vocab_size} does not hold the 256 bytes and 4 special pieces; raise it to {count}"
        )
    if count < vocab_size:
        raise InputError(_too_many(vocab_size, count))
    merges = [tuple(pair) for pair in model["merges"]]
    return ByteLevelTokenizer(model["vocab"], merges, _special(vocab_size), add_prefix_space=False, rule="trained")


def _special(mask_id: int) -> AddedTokens:
    return AddedTokens([AddedToken(n, i) for n, i in zip(SPECIALS, (0, 1, 2, 3, mask_id), strict=True)])


def _checked(lines: Iterable[Any]) -> Iterator[str]:
    for number, line in enumerate(lines):
        if not isinstance(line, str):
            raise InputError(f"line {number} is {type(line).__name__}, not str; convert it or leave it out")
        yield SURROGATES.sub("\ufffd", line)


def _too_many(vocab_size: int, most: int | str) -> str:
    return f"vocab_size={vocab_size} is more than this text supports; {most} is the most, or give more text"


def _why_not(message: str, vocab_size: int) -> str:
    """Converts an error message of SentencePiece to one line that says what to do."""
    if found := re.search(r"value <= (\d+)", message):
        return (
            f"vocab_size={vocab_size} is more than this text supports; {found.group(1)} is the most, or give more text"
        )
    if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return f"vocab_size={vocab_size} does not hold this text's characters; raise it to at least {found.group(1)}"
    return f"SentencePiece cannot make {vocab_size} pieces of this text: {' '.join(message.split())}"
