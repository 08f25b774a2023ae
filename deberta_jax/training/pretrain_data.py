"""Reads what a pre-training trains on: the tokenizer, batches of text, held-out batches, and token counts."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from deberta_jax.data.corpus import Corpus, open_corpus
from deberta_jax.data.masked_batches import HeldOutBatches, MaskedBatches, Masker
from deberta_jax.data.rows import lay_out
from deberta_jax.errors import InputError
from deberta_jax.sharding import row_share
from deberta_jax.text import Tokenizer, load_tokenizer
from deberta_jax.text.mlm_masking import Masking, Vocabulary
from deberta_jax.training.experiment import Pretraining, PretrainRTD
from deberta_jax.training.resolve import check_same_tokenizer

_log = logging.getLogger(__name__)

_LARGE_BATCH = 1 << 24  # tokens; several times those of the largest published pre-trainings


@dataclasses.dataclass(frozen=True)
class PretrainData:
    """Holds what a pre-training reads.

    Attributes:
      train: the run's batches.
      held_out: batches of held-out text, masked the same way at every evaluation.
      counts: int64 [V of the tokenizer], how often each id is in the text to train on.
    """

    tokenizer: Tokenizer
    train: MaskedBatches
    held_out: HeldOutBatches
    counts: np.ndarray


def read_pretrain_data(e: Pretraining, directory: Path, vocab_size: int, mesh: Mesh, masking: Masking) -> PretrainData:
    """Reads text and tokenizer; writes nothing.

    Args:
      directory: the tokenizer's directory.
      vocab_size: the model's number of token ids.

    Raises:
      InputError: files or sizes that cannot be used; a generator with another tokenizer.
    """
    tokenizer, named = load_tokenizer(directory), e.tokenizer or e.model
    if isinstance(e, PretrainRTD) and e.generator:
        check_same_tokenizer("--generator", e.generator, named, tokenizer)
    if tokenizer.vocab_size > vocab_size:
        raise InputError(
            f"{named}: the tokenizer has {tokenizer.vocab_size} ids, the model a vocab_size of {vocab_size}"
        )
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * e.runtime.accumulate
    if e.batch_size % parts:
        raise InputError(f"--batch-size {e.batch_size}: must be a multiple of the {parts} parts it is computed in")
    corpus, held_out = (open_corpus(paths, tokenizer, e.source) for paths in (e.train, [e.eval]))
    check_batch(e, corpus)
    rows, rows_held_out = (lay_out(each, e.max_length, e.layout) for each in (corpus, held_out))
    _log.info(
        "text: %d tokens in %d rows of %d to train on, %d rows held out",
        corpus.tokens,
        len(rows),
        e.max_length,
        len(rows_held_out),
    )
    masker, share = Masker(Vocabulary.of(tokenizer), masking), row_share(mesh)
    train = MaskedBatches(rows=rows, masker=masker, batch_size=e.batch_size, steps=e.steps, seed=e.seed, share=share)
    evaluated = HeldOutBatches(rows=rows_held_out, masker=masker, batch_size=e.batch_size, seed=e.seed, share=share)
    return PretrainData(tokenizer, train, evaluated, corpus.unigrams)


def check_batch(e: Pretraining, corpus: Corpus) -> None:
    """Checks that a batch is not much larger than the whole text, which would repeat the same rows in every step.

    Raises:
      InputError: it is, and too large for a text that is only small.
    """
    slots, text = e.batch_size * e.max_length, corpus.tokens + 2 * len(corpus.lengths)
    if slots > max(_LARGE_BATCH, 2 * text):
        raise InputError(
            f"--batch-size {e.batch_size}, --max-length {e.max_length}: a batch would have {slots} tokens, and the "
            f"whole text has {corpus.tokens}; lower one of them"
        )
