"""Evaluates a pre-training on held-out text, and what a guess without reading would reach there."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deberta_jax.data.masked_batches import HeldOutBatches
from deberta_jax.inference.predict import one_behind
from deberta_jax.inference.row_exchange import RowExchange
from deberta_jax.models import DebertaForMaskedLM
from deberta_jax.ops.losses import replaced_token_loss
from deberta_jax.sharding import WHOLE, batch_sharding, global_batch
from deberta_jax.tasks import Metrics
from deberta_jax.training.finite import ADVICE
from deberta_jax.training.mlm import masked_lm_results
from deberta_jax.training.pretrain_data import PretrainData
from deberta_jax.training.rtd import RTDModels, replace_tokens

Tick = Callable[[], None]
Evaluate = Callable[[Any, Tick], Metrics]


def masked_lm_evaluation(model: DebertaForMaskedLM, data: PretrainData, mesh: Mesh) -> Evaluate:
    """Returns the function that evaluates a masked language model: (params, tick) -> metrics.

    Metrics: ``loss`` (nats a target), ``perplexity``, ``accuracy``. For comparison the losses of guesses that do not
    read the text: ``uniform_loss``, all tokens equally likely; ``unigram_loss``, by their counts in the text to train
    on; ``unigram_entropy``, by their counts in the held-out text itself. ``masked_positions``: the fraction of
    positions that were a target at least once.
    """

    @jax.jit
    def measure(params, batch):
        found = masked_lm_results(model, params, batch)
        return jnp.stack([found.value.sum(), (found.correct * found.weight).sum(), found.weight.sum()])

    guesses = guesses_without_reading(data.held_out, data.counts)

    def evaluate(params, tick):
        sums = np.zeros(3)
        with jax.set_mesh(mesh):
            for found in one_behind(measure(params, batch) for _, batch in _on_devices(data, mesh, tick)):
                sums += np.asarray(jax.device_get(found), np.float64)
        loss, accuracy = sums[:2] / sums[2]
        return {"loss": float(loss), "perplexity": math.exp(min(loss, 700.0)), "accuracy": float(accuracy), **guesses}

    return evaluate


def replaced_token_evaluation(
    models: RTDModels, discriminator_weight: float, data: PretrainData, mesh: Mesh
) -> Evaluate:
    """Returns the function that evaluates replaced-token detection: (params, tick) -> metrics.

    Metrics of the discriminator: ``discriminator_loss`` (nats a token); ``prior_entropy``, the loss of a guess that
    knows only the rate of replaced tokens; ``gain``, their difference; ``roc_auc``, ``average_precision``;
    ``replaced_rate``, which is also the average precision of a random guess; ``replaced_targets``, the fraction of
    targets where the generator's sample differs from the text. Of the generator: the metrics of
    ``masked_lm_evaluation``, prefixed with ``generator_``. ``loss``: what is trained, the generator's loss plus
    ``discriminator_weight`` times the discriminator's. Root mean squares: ``table_rms`` of the generator's word
    embeddings, ``difference_rms`` of the difference of the discriminator's.

    The random numbers behind the samples are the same at every evaluation.
    """
    exchange = RowExchange(mesh)
    everywhere, by_rows = NamedSharding(mesh, PartitionSpec()), batch_sharding(mesh)

    @functools.partial(jax.jit, out_shardings=(everywhere, by_rows, by_rows))
    def measure(params, batch, key):
        uniform = jax.random.uniform(key, batch["labels"].shape)
        found = masked_lm_results(models.generator, params["generator"], batch, uniform)
        assert found.sampled is not None
        ids, labels = replace_tokens(batch, found.sampled)
        logits = models.discriminator_logits(models.discriminator_params(params), batch, ids)
        value, weight = replaced_token_loss(logits, labels)
        sums = [found.value.sum(), (found.correct * found.weight).sum(), found.weight.sum(), value.sum(), weight.sum()]
        return jnp.stack(sums), logits, labels

    @jax.jit
    def norms(params):
        own = models.discriminator_params(params)
        table_of = lambda tree: tree["deberta"]["embeddings"]["word_embeddings"]["embedding"]
        generator, discriminator = table_of(params["generator"]), table_of(own)
        rms = lambda x: jnp.sqrt(jnp.mean(jnp.square(x)))
        return rms(generator), rms(discriminator - generator)

    found = guesses_without_reading(data.held_out, data.counts)
    masked = {"masked_positions": found.pop("masked_positions")}
    guesses = {f"generator_{name}": value for name, value in found.items()}

    def evaluate(params, tick):
        batches, rows = len(data.held_out), data.held_out.batch_size
        shape = batches * rows, data.held_out.rows.length
        sums, logits, labels = np.zeros(5), np.zeros(shape, np.float32), np.zeros(shape, np.int8)
        with jax.set_mesh(mesh):
            measured = (measure(params, b, jax.random.key(i)) for i, b in _on_devices(data, mesh, tick))
            for index, (found, *by_row) in enumerate(one_behind(measured)):
                sums += np.asarray(jax.device_get(found), np.float64)
                own = index * rows + exchange.share.rows(rows)
                logits[own], labels[own] = map(exchange.local, by_row)
            if exchange.needed:
                owners = np.tile(exchange.owners(rows, rows), batches)
                for array in (logits, labels):
                    exchange.complete(array, owners)
            table, difference = (float(x) for x in jax.device_get(norms(params)))
        generator, accuracy = sums[:2] / sums[2]
        discriminator = sums[3] / sums[4]
        scores, truth = logits[labels >= 0], labels[labels >= 0].astype(np.int64)
        if not (np.isfinite(sums).all() and np.isfinite(scores).all()):
            raise FloatingPointError(f"the scores of the evaluation are not finite: {ADVICE}")
        found = detection_metrics(scores, truth)
        return {
            "loss": float(generator + discriminator_weight * discriminator),
            "discriminator_loss": float(discriminator),
            "gain": found["prior_entropy"] - float(discriminator),
            **found,
            "replaced_targets": float(truth.sum() / sums[2]),
            "generator_loss": float(generator),
            "generator_accuracy": float(accuracy),
            **guesses,
            "table_rms": table,
            "difference_rms": difference,
            **masked,
        }

    return evaluate


def detection_metrics(logits: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Returns how well logits tell replaced tokens from others, computed by scikit-learn.

    Args:
      logits: float [n], larger for tokens that seem replaced.
      truth: int [n], 1 for replaced tokens and 0 for others.

    Returns:
      ``roc_auc`` and ``average_precision`` (0.5 and the rate where there is only one class); ``replaced_rate``, the
      fraction of 1; ``prior_entropy``, the entropy of that rate in nats.
    """
    from sklearn import metrics as sk

    rate = float(truth.mean())
    if rate in (0.0, 1.0):
        return {"replaced_rate": rate, "prior_entropy": 0.0, "roc_auc": 0.5, "average_precision": rate}
    return {
        "replaced_rate": rate,
        "prior_entropy": -rate * math.log(rate) - (1 - rate) * math.log(1 - rate),
        "roc_auc": float(sk.roc_auc_score(truth, logits)),
        "average_precision": float(sk.average_precision_score(truth, logits)),
    }


def _on_devices(data: PretrainData, mesh: Mesh, tick: Tick) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    for index in range(len(data.held_out)):
        tick()
        yield index, global_batch(data.held_out[index], mesh)


def guesses_without_reading(held_out: HeldOutBatches, counts: np.ndarray) -> dict[str, float]:
    """Returns ``uniform_loss``, ``unigram_loss``, ``unigram_entropy`` and ``masked_positions``.

    They are what ``masked_lm_evaluation`` describes. ``counts`` [V]: how often each id is in the text to train on.
    """
    every: HeldOutBatches = dataclasses.replace(held_out, share=WHOLE)  # the rows of all processes
    own, ever = np.zeros(len(counts)), np.zeros(every.rows.length, bool)
    for index in range(len(every)):
        batch = every[index]
        own += np.bincount(batch["labels"][batch["labels"] >= 0], minlength=len(own))
        ever[batch["positions"][batch["positions"] >= 0]] = True
    # One is added to every count, so that a token which the training text lacks has a finite loss.
    rates, counts = own / own.sum(), counts + 1.0
    seen = rates > 0
    return {
        "uniform_loss": math.log(len(counts)),
        "unigram_loss": float(-(rates @ np.log(counts / counts.sum()))),
        "unigram_entropy": float(-(rates[seen] @ np.log(rates[seen]))),
        "masked_positions": float(ever[1:-1].mean()),
    }
