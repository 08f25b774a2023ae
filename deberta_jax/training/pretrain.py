"""Pre-training by masked language modelling with the plain head: from text files to the run's Job."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deberta_jax import hub
from deberta_jax.data.corpus import MaskedBatches, Masker, contiguous_rows, read_lines
from deberta_jax.errors import InputError
from deberta_jax.models import DebertaForMaskedLM, init_params
from deberta_jax.ops.losses import masked_lm_loss
from deberta_jax.sharding import global_batch, row_share
from deberta_jax.text import load_tokenizer
from deberta_jax.training.directory import Result, check_directory
from deberta_jax.training.distributed import on_writer, start
from deberta_jax.training.experiment import PretrainMLM, model_runtime, require, resolved
from deberta_jax.training.loop import Job, fit, mesh_of
from deberta_jax.training.state import parameters_of
from deberta_jax.weights import load, load_config, save_pretrained

_log = logging.getLogger(__name__)

INPUTS = ("input_ids", "attention_mask", "positions")


def pretrain_mlm(experiment: PretrainMLM) -> Result:
    """Runs, or goes on with, a pre-training; ``experiment.output`` becomes a masked-LM model directory.

    ``metrics`` of the result are ``loss`` (nats a target) and ``accuracy`` on the held-out text, masked once for all.

    Raises:
      InputError: files, model or output directory that cannot be used; nothing is written then.
      FloatingPointError: the run diverged.
    """
    e = experiment
    require(e, "model", "train", "eval", "output")
    start(e.runtime)
    texts = {path: read_lines(path) for path in (*e.train, e.eval)}
    record = resolved(e, {path: path for path in texts})
    directory = Path(e.output)
    return check_directory(directory, record) or fit(make_job(e, record, directory, texts))


def make_job(e: PretrainMLM, record: dict[str, Any], directory: Path, texts: dict[str, list[str]]) -> Job:
    """Everything up to the first step, without writing anything."""
    tokenizer = load_tokenizer(hub.resolve(e.model, files=hub.TEXT_FILES))
    config = dataclasses.replace(load_config(e.model), legacy=False)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{e.model}: the tokenizer has {tokenizer.vocab_size} ids, config.json a vocab_size of {config.vocab_size}"
        )
    rows = contiguous_rows(tokenizer, [line for path in e.train for line in texts[path]], e.max_length)
    held_out = contiguous_rows(tokenizer, texts[e.eval], e.max_length)
    _log.info("text: %d rows of %d tokens to train on, %d held out", len(rows), e.max_length, len(held_out))
    count = max(1, round(e.mask_share * (e.max_length - 2)))
    specials = tuple(tokenizer.all_special_ids)
    first = max(i for i in specials if i != tokenizer.mask_id) + 1
    masker = Masker(count, tokenizer.mask_id, (first, tokenizer.vocab_size), specials)

    mesh = mesh_of(e.runtime)
    split = mesh.shape["data"] * mesh.shape["fsdp"] * e.runtime.accumulate
    if e.batch_size % split:
        raise InputError(f"--batch-size {e.batch_size}: must be a multiple of the {split} parts it is computed in")
    runtime = model_runtime(e)
    model = DebertaForMaskedLM(config, **runtime)
    key = jax.random.key(e.seed)

    def initial_params(shardings):
        if e.from_scratch:
            return jax.jit(lambda: init_params(model, key), out_shardings=shardings)()
        return load(e.model, "masked-lm", shardings=shardings, **runtime)[1]

    def logits(params, batch, **options):
        inputs = {name: batch[name] for name in INPUTS}
        return model.apply({"params": params}, **inputs, **options).logits  # pyright: ignore

    def loss(params, batch, key):
        found = logits(params, batch, deterministic=False, rngs={"dropout": key})
        return {"task": masked_lm_loss(found, batch["labels"])}

    @jax.jit
    def measure(params, batch):
        found = logits(params, batch)
        value, weight = masked_lm_loss(found, batch["labels"])
        return (value * weight).sum(), ((found.argmax(-1) == batch["labels"]) * weight).sum(), weight.sum()

    def evaluate(params, tick):
        sums, share = np.zeros(3), row_share(mesh)
        with jax.set_mesh(mesh):
            for start in range(0, len(held_out), e.batch_size):
                tick()
                part = held_out[start : start + e.batch_size]
                batch = masker(part, np.random.default_rng([e.seed, 2, start]))
                if len(part) < e.batch_size:
                    batch = {name: _pad_rows(array, e.batch_size) for name, array in batch.items()}
                    batch["labels"][len(part) :] = -100
                mine = {name: array[share.rows(e.batch_size)] for name, array in batch.items()}
                sums += np.asarray(jax.device_get(measure(params, global_batch(mine, mesh))), np.float64)
        return {"loss": float(sums[0] / sums[2]), "accuracy": float(sums[1] / sums[2])}

    return Job(
        directory=directory, record=record, config=config, parameters=parameters_of(model), mesh=mesh,
        optimization=e.optimization, runtime=e.runtime, seed=e.seed, initial_params=initial_params, loss=loss,
        batches=MaskedBatches(rows, e.batch_size, e.steps, e.seed, masker, row_share(mesh)), evaluate=evaluate,
        metric="loss",
        save_best=lambda params: save_pretrained(directory, model, on_writer(params), tokenizer, overwrite=True),
        eval_every=e.eval_every, evaluate_first=True,
    )  # fmt: skip


def _pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])
