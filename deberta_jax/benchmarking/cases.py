"""Defines what a benchmark measures: the combinations of model, job, shape and dtype, and a batch for each."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.data.batches import pad_batch
from deberta_jax.data.features import Features
from deberta_jax.data.packing import Packing, pack, packed_batch
from deberta_jax.errors import InputError
from deberta_jax.presets import PRESETS
from deberta_jax.weights import load_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Holds one line of the benchmark.

    Attributes:
      name: what the model is called in the results.
      config: the model's config; its weights are random.
      job: ``forward``, prediction by a classifier; or ``train``, a step of fine-tuning it, with AdamW and dropout.
      length: tokens of a row.
      rows: rows of a batch, on all devices together.
      dtype: ``float32`` or ``bfloat16``, of the computation.
      texts: ``fixed``, each row is one text of ``length`` tokens; or ``mixed``, rows are packed with texts of
        log-normal lengths with a median of an eighth of a row.
      attention: the attention implementation.
    """

    name: str
    config: DebertaConfig
    job: str
    length: int
    rows: int
    dtype: Literal["float32", "bfloat16"]
    texts: str
    attention: str = "auto"


def make_cases(
    models: Sequence[str],
    jobs: Sequence[str],
    lengths: Sequence[int],
    dtypes: Sequence[Literal["float32", "bfloat16"]],
    texts: Sequence[str],
    *,
    tokens: int,
    attention: str,
) -> list[Case]:
    """Returns all combinations of the arguments.

    Args:
      models: names of released architectures, model directories or hub ids.
      tokens: token slots of a batch, about: the number of rows is a multiple of the number of devices.

    Raises:
      InputError: a model that is not there, or a batch without a token.
    """
    configs = {name: PRESETS[name] if name in PRESETS else load_config(name) for name in models}
    if tokens < 1 or min(lengths) < 8:
        raise InputError("--tokens and --lengths: a batch has at least 1 token, a row at least 8")
    count = jax.device_count()
    rows = {length: -(-max(1, tokens // length) // count) * count for length in lengths}
    return [
        Case(
            name=name,
            config=config,
            job=job,
            length=length,
            rows=rows[length],
            dtype=dtype,
            texts=kind,
            attention=attention,
        )
        for name, config in configs.items()
        for dtype in dtypes
        for job in jobs
        for length in lengths
        for kind in texts
    ]


def make_batch(case: Case) -> dict[str, np.ndarray]:
    """Returns a batch of random tokens and labels, the same at every call.

    Arrays are those of ``data.batches.pad_batch`` for ``fixed`` texts, of ``data.packing.packed_batch`` for ``mixed``.
    """
    random = np.random.default_rng(0)
    if case.texts == "fixed":
        lengths = np.full(case.rows, case.length)
    else:
        drawn = np.exp(random.normal(np.log(case.length / 8), 0.8, 64 * case.rows)).astype(np.int64)
        lengths = np.clip(drawn, 4, case.length)
        lengths = lengths[np.cumsum(lengths) <= 0.97 * case.rows * case.length]
    slots = case.length // 4
    row_of, _ = pack(lengths, case.length, slots)
    here = np.flatnonzero(row_of < case.rows)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    features = Features(
        ids=random.integers(5, case.config.vocab_size, starts[-1]).astype(np.int32),
        types=np.zeros(starts[-1], np.int8),
        starts=starts,
        labels=random.integers(0, 2, len(lengths)).astype(np.int32),
    )
    if case.texts == "fixed":
        return pad_batch(features, here, case.rows, case.length, 0)
    shape = Packing(case.length, int(np.bincount(row_of[here]).max()), (case.rows,))
    return packed_batch(features, here, row_of[here], np.arange(case.rows), shape, 0)


def count_tokens(batch: dict[str, np.ndarray]) -> int:
    """Returns the number of tokens in a batch, without padding."""
    return int((batch["segment_ids"] > 0 if "segment_ids" in batch else batch["attention_mask"]).sum())
