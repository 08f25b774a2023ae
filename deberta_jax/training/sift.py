"""Computes the loss of SiFT, scale-invariant fine-tuning (He et al. 2021, section 4; as in Microsoft's code).

Word embeddings are normalized by LayerNorm without scale or bias, z = LN(e), and the model reads z. There are three
forward passes. The first, at z, gives the task's own loss. The second, at z + delta with a small random delta, gives
the direction in which the output changes most, and delta takes one step there. The third, at z + delta, gives the SiFT
loss: the divergence between its output and that of the first, in both directions.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.ops.embedding_lookup import take_rows
from deberta_jax.ops.losses import Items
from deberta_jax.ops.normalization import layer_norm

Forward = Callable[[jax.Array, jax.Array], Any]
"""(embeddings [B,T,D], dropout key) -> logits [..., C]."""

EPSILON = 1e-7


@dataclasses.dataclass(frozen=True)
class Sift:
    """Holds SiFT's settings.

    Attributes:
      weight: weight of the SiFT loss.
      sigma: standard deviation of the first delta.
      step: size of the gradient ascent step.
      regression: outputs are numbers, compared by their squared difference instead of as distributions.
    """

    weight: float
    sigma: float
    step: float
    regression: bool


def check_sift(config: DebertaConfig) -> None:
    """Checks that a model's input is its word embeddings alone. Raises InputError for any other."""
    if config.position_biased_input or config.type_vocab_size > 0 or config.embedding_width != config.hidden_size:
        raise InputError("--sift: needs a model whose input is its word embeddings alone, as all released ones are")


def normalized_words(params: Mapping[str, Any], input_ids: jax.Array, dtype: Any) -> jax.Array:
    """Returns z, ``dtype`` [B,T,D]: the word embeddings after LayerNorm without scale or bias."""
    table = params["deberta"]["embeddings"]["word_embeddings"]["embedding"]
    width = table.shape[-1]
    embeddings = take_rows(table, input_ids)
    return layer_norm(embeddings, jnp.ones(width), jnp.zeros(width), EPSILON).astype(dtype)


def first_delta(key: jax.Array, shape: tuple[int, ...], sigma: float) -> jax.Array:
    """Returns random numbers from Normal(0, sigma), clipped at two sigma; float32 of ``shape``."""
    return jnp.clip(sigma * jax.random.normal(key, shape, jnp.float32), -2 * sigma, 2 * sigma)


def divergence(a: jax.Array, b: jax.Array, *, regression: bool) -> jax.Array:
    """Returns the divergence between logits a and b [..., C], float32 [...].

    It is the sum of the two cross-entropies between softmax(a) and softmax(b), without gradients to the targets; for a
    regression the mean squared difference.
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    if regression:
        return jnp.square(a - b).mean(-1)
    log_a, log_b = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    p, q = jax.lax.stop_gradient(jnp.exp(log_a)), jax.lax.stop_gradient(jnp.exp(log_b))
    return -(p * log_b + q * log_a).sum(-1)


def ascend(
    forward: Forward, z: jax.Array, clean: jax.Array, weight: jax.Array, delta: jax.Array, key: jax.Array, sift: Sift
) -> jax.Array:
    """Returns delta after one step of gradient ascent on the divergence from ``clean``.

    Each token's gradient is divided by its largest absolute entry. If the gradient is not finite, delta stays as it is.

    Args:
      forward: (embeddings, dropout key) -> logits.
      z, delta: [B,T,D].
      clean: logits at z.
      weight: weight of each item.
    """

    def total(d):
        return (weight * divergence(forward(z + d, key), clean, regression=sift.regression)).sum()

    g = jax.grad(total)(delta)
    step = sift.step * g / (1e-6 + jnp.abs(g).max(-1, keepdims=True))
    return jnp.where(jnp.isfinite(jnp.sum(jnp.square(g))), delta + step, delta)


def sift_terms(
    forward: Callable[[Any, jax.Array, jax.Array], Any],
    task_loss: Callable[[Any], Items],
    params: Any,
    z: jax.Array,
    key: jax.Array,
    sift: Sift,
) -> dict[str, Items]:
    """Returns the terms of the loss, ``task`` and ``sift``, for each item.

    Args:
      forward: (params, embeddings, dropout key) -> the model's output with ``logits``; all three passes have dropout.
      task_loss: computes the items of the task's loss from such an output.
      z: as ``normalized_words`` returns it. No gradient of the SiFT loss reaches the word embeddings.
    """
    clean_key, ascent_key, final_key, noise_key = jax.random.split(key, 4)
    out = forward(params, z, clean_key)
    value, weight = task_loss(out)
    fixed_z = jax.lax.stop_gradient(z)
    delta = first_delta(noise_key, z.shape, sift.sigma)
    fixed_params = jax.lax.stop_gradient(params)
    logits_of = lambda p: lambda x, k: forward(p, x.astype(z.dtype), k).logits
    clean = jax.lax.stop_gradient(out.logits)
    delta = jax.lax.stop_gradient(ascend(logits_of(fixed_params), fixed_z, clean, weight, delta, ascent_key, sift))
    adversarial = logits_of(params)(fixed_z + delta, final_key)
    return {"task": (value, weight), "sift": (divergence(adversarial, out.logits, regression=sift.regression), weight)}
