"""SiFT, scale-invariant fine-tuning (He et al. 2021, section 4; as in Microsoft's code): three pure forwards.

Word embeddings are layer-normalised without scale or bias, z = LN(e), and the model reads z. The first forward is the
task's own. The second, at z + delta with a small random delta, tells in which direction the answer changes most; delta
takes one step there. The third, at z + delta, is held to the first one's answer, and it to that of the third.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.ops.lookup import take_rows
from deberta_jax.ops.losses import Items
from deberta_jax.ops.normalization import layer_norm

Forward = Callable[[jax.Array, jax.Array], Any]
"""(embeddings [B,T,D], dropout key) -> the model's output."""

EPSILON = 1e-7


@dataclasses.dataclass(frozen=True)
class Sift:
    """``weight`` of the loss between clean and perturbed; ``sigma`` of the first delta; ``step`` uphill.

    ``regression``: answers are numbers, compared by their squared difference instead of as distributions.
    """

    weight: float
    sigma: float
    step: float
    regression: bool


def check_sift(config: DebertaConfig) -> None:
    """Raises InputError for a model whose input is more than word embeddings."""
    if config.position_biased_input or config.type_vocab_size > 0 or config.embedding_width != config.hidden_size:
        raise InputError("--sift: needs a model whose input is its word embeddings alone, as all released ones are")


def normalized_words(params: Mapping[str, Any], input_ids: jax.Array, dtype: Any) -> jax.Array:
    """z [B,T,D]: the word embeddings, layer-normalised without scale or bias."""
    table = params["deberta"]["embeddings"]["word_embeddings"]["embedding"]
    width = table.shape[-1]
    words = take_rows(table, input_ids)
    return layer_norm(words, jnp.ones(width), jnp.zeros(width), EPSILON).astype(dtype)


def first_delta(key: jax.Array, shape: tuple[int, ...], sigma: float) -> jax.Array:
    """Normal with spread sigma, cut at two sigma."""
    return jnp.clip(sigma * jax.random.normal(key, shape, jnp.float32), -2 * sigma, 2 * sigma)


def divergence(a: jax.Array, b: jax.Array, *, regression: bool) -> jax.Array:
    """[...]: the two cross-entropies between softmax(a) and softmax(b) [..., C], each target without a gradient; for
    numbers the squared difference."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    if regression:
        return jnp.square(a - b).mean(-1)
    log_a, log_b = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    p, q = jax.lax.stop_gradient(jnp.exp(log_a)), jax.lax.stop_gradient(jnp.exp(log_b))
    return -(p * log_b + q * log_a).sum(-1)


def ascend(
    forward: Forward, z: jax.Array, clean: jax.Array, weight: jax.Array, delta: jax.Array, key: jax.Array, sift: Sift
) -> jax.Array:
    """Delta after one step uphill: each token's gradient is divided by its largest entry.

    Where the gradient is not finite delta stays as it is.
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
    """The parts of the loss, ``task`` and ``sift``, for each item.

    Args:
      forward: (params, embeddings, dropout key) -> the model's output with ``logits``; dropout is on in all three.
      task_loss: of such an output.
      z: as ``normalized_words`` gives it. The adversarial forward does not reach the word table.
    """
    clean_key, ascent_key, final_key, noise_key = jax.random.split(key, 4)
    out = forward(params, z, clean_key)
    value, weight = task_loss(out)
    still = jax.lax.stop_gradient(z)
    delta = first_delta(noise_key, z.shape, sift.sigma)
    fixed = jax.lax.stop_gradient(params)
    logits_of = lambda p: lambda x, k: forward(p, x.astype(z.dtype), k).logits
    clean = jax.lax.stop_gradient(out.logits)
    delta = jax.lax.stop_gradient(ascend(logits_of(fixed), still, clean, weight, delta, ascent_key, sift))
    adversarial = logits_of(params)(still + delta, final_key)
    return {"task": (value, weight), "sift": (divergence(adversarial, out.logits, regression=sift.regression), weight)}
