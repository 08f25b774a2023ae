"""What a pre-training has learned, on held-out text, beside what a guess would reach."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deberta_jax.data.masked import HeldOutBatches
from deberta_jax.inference.tasks import Metrics
from deberta_jax.models import DebertaForMaskedLM
from deberta_jax.ops.losses import replaced_token_loss
from deberta_jax.sharding import WHOLE, global_batch
from deberta_jax.training.corpora import Text
from deberta_jax.training.pair import Pair, masked_lm_scores, replace_tokens

Tick = Callable[[], None]
Evaluate = Callable[[Any, Tick], Metrics]


def masked_lm_evaluation(model: DebertaForMaskedLM, text: Text, mesh: Mesh) -> Evaluate:
    """``loss`` (nats a target), ``perplexity``, ``accuracy``; ``uniform_loss`` and ``unigram_loss``, which are those of
    guesses that do not read (all words alike; by their counts in the text to train on); ``unigram_entropy``, the least
    that such a guess could reach even knowing the held-out text's own counts; ``masked_positions``, the share of the
    positions that were ever a target.
    """

    @jax.jit
    def measure(params, batch):
        found = masked_lm_scores(model, params, batch)
        return jnp.stack([found.value.sum(), (found.right * found.weight).sum(), found.weight.sum()])

    guesses = guesses_without_reading(text.held_out, text.counts)

    def evaluate(params, tick):
        sums = np.zeros(3)
        with jax.set_mesh(mesh):
            for _, batch in _on_devices(text, mesh, tick):
                sums += np.asarray(jax.device_get(measure(params, batch)), np.float64)
        loss, accuracy = sums[:2] / sums[2]
        return {"loss": float(loss), "perplexity": math.exp(min(loss, 700.0)), "accuracy": float(accuracy), **guesses}

    return evaluate


def replaced_token_evaluation(pair: Pair, factor: float, text: Text, mesh: Mesh) -> Evaluate:
    """Of the discriminator: ``discriminator_loss`` (nats a token) beside ``prior_entropy``, that of a guess which knows
    only how many tokens are replaced, and ``gain``, the difference; ``roc_auc`` and ``average_precision``, beside
    ``replaced_rate``, which an average precision by chance has; ``replaced_targets``, the share of the targets that the
    generator did not guess. Of the generator: its masked-LM figures with ``generator_`` before them. ``loss`` is that
    which is trained: the generator's plus ``factor`` times the discriminator's. Root mean squares of the embeddings:
    ``table_rms`` of the generator's words, ``difference_rms`` of what the discriminator's differ from them.

    The drawn words are the same at every evaluation, but for what the generator has learned.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())

    @jax.jit
    def measure(params, batch, key):
        uniform = jax.random.uniform(key, batch["labels"].shape)
        found = masked_lm_scores(pair.generator, params["generator"], batch, uniform)
        assert found.drawn is not None
        ids, labels = replace_tokens(batch, found.drawn)
        logits = pair.judge(pair.discriminator_params(params), batch, ids)
        value, weight = replaced_token_loss(logits, labels)
        sums = [found.value.sum(), (found.right * found.weight).sum(), found.weight.sum(), value.sum(), weight.sum()]
        return jnp.stack(sums), *(jax.lax.with_sharding_constraint(a, everywhere) for a in (logits, labels))

    @jax.jit
    def norms(params):
        own = pair.discriminator_params(params)
        words = [p["deberta"]["embeddings"]["word_embeddings"]["embedding"] for p in (params["generator"], own)]
        rms = lambda x: jnp.sqrt(jnp.mean(jnp.square(x)))
        return rms(words[0]), rms(words[1] - words[0])

    found = guesses_without_reading(text.held_out, text.counts)
    masked = {"masked_positions": found.pop("masked_positions")}
    guesses = {f"generator_{name}": value for name, value in found.items()}

    def evaluate(params, tick):
        sums, scores, truth = np.zeros(5), [], []
        with jax.set_mesh(mesh):
            for index, batch in _on_devices(text, mesh, tick):
                found, logits, labels = jax.device_get(measure(params, batch, jax.random.key(index)))
                sums += np.asarray(found, np.float64)
                scores.append(logits[labels >= 0])
                truth.append(labels[labels >= 0])
            table, difference = (float(x) for x in jax.device_get(norms(params)))
        generator, accuracy = sums[:2] / sums[2]
        discriminator = sums[3] / sums[4]
        found = detection_metrics(np.concatenate(scores), np.concatenate(truth))
        return {
            "loss": float(generator + factor * discriminator),
            "discriminator_loss": float(discriminator),
            "gain": found["prior_entropy"] - float(discriminator),
            **found,
            "replaced_targets": float(np.concatenate(truth).sum() / sums[2]),
            "generator_loss": float(generator),
            "generator_accuracy": float(accuracy),
            **guesses,
            "table_rms": table,
            "difference_rms": difference,
            **masked,
        }

    return evaluate


def detection_metrics(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Of scores [n] for labels 0 and 1 [n]: ``roc_auc`` and ``average_precision``, by scikit-learn, and what a guess
    without reading has: ``replaced_rate``, the share of 1, and ``prior_entropy`` in nats. A single class: 0.5 and the
    rate."""
    from sklearn import metrics as sk

    rate = float(truth.mean())
    if rate in (0.0, 1.0):
        return {"replaced_rate": rate, "prior_entropy": 0.0, "roc_auc": 0.5, "average_precision": rate}
    return {
        "replaced_rate": rate,
        "prior_entropy": -rate * math.log(rate) - (1 - rate) * math.log(1 - rate),
        "roc_auc": float(sk.roc_auc_score(truth, scores)),
        "average_precision": float(sk.average_precision_score(truth, scores)),
    }


def _on_devices(text: Text, mesh: Mesh, tick: Tick) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    for index in range(len(text.held_out)):
        tick()
        yield index, global_batch(text.held_out[index], mesh)


def guesses_without_reading(held_out: HeldOutBatches, counts: np.ndarray) -> dict[str, float]:
    """``uniform_loss``, ``unigram_loss``, ``unigram_entropy`` and ``masked_positions``, as ``masked_lm_evaluation`` has
    them; ``counts`` [V]: how often each id is in the text to train on."""
    every: HeldOutBatches = dataclasses.replace(held_out, share=WHOLE)  # also what other processes read
    own, ever = np.zeros(len(counts)), np.zeros(every.rows.length, bool)
    for index in range(len(every)):
        batch = every[index]
        own += np.bincount(batch["labels"][batch["labels"] >= 0], minlength=len(own))
        ever[batch["positions"][batch["positions"] >= 0]] = True
    # One is added to every count: a word that the training text lacks still has a finite loss.
    shares, counts = own / own.sum(), counts + 1.0
    seen = shares > 0
    return {
        "uniform_loss": math.log(len(counts)),
        "unigram_loss": float(-(shares @ np.log(counts / counts.sum()))),
        "unigram_entropy": float(-(shares[seen] @ np.log(shares[seen]))),
        "masked_positions": float(ever[1:-1].mean()),
    }
