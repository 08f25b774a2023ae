"""What stands on the encoder: pooler, classifiers, the masked-LM head and the replaced-token head."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deberta_jax.config import DebertaConfig
from deberta_jax.models.layers import Dropout, LayerNorm, Linear, Runtime, declare
from deberta_jax.models.outputs import FactoredOutput
from deberta_jax.ops.activations import activate
from deberta_jax.ops.products import align, product
from deberta_jax.sharding import constrain


def dense(config: DebertaConfig, runtime: Runtime, name: str, width: int | None = None, out: int | None = None):
    """A Linear from the hidden width (or ``width``) to ``out`` (or the hidden width)."""
    shape = (width or config.hidden_size, out or config.hidden_size)
    return Linear(shape, ("embed", None), config.initializer_range, runtime, name=name)


def classify(config: DebertaConfig, runtime: Runtime, name: str, x: jax.Array, classes: int) -> jax.Array:
    """Float32 logits [..., C]."""
    return dense(config, runtime, name, out=classes)(x, out_dtype=jnp.float32)


def take_positions(x: Float[Array, "B T D"], positions: Int[Array, "B P"]) -> Float[Array, "B P D"]:
    """The vectors at the given positions; a position of -1 (none) gives a vector that means nothing."""
    return jnp.take_along_axis(x, jnp.maximum(positions, 0)[..., None], axis=1)


class Pooler(nn.Module):
    """Vector of a text's first token: dropout, dense, activation."""

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x: Float[Array, "B P D"], deterministic: bool) -> Float[Array, "B P D"]:
        c = self.config
        x = Dropout(c.pooler_dropout)(x, deterministic)
        return activate(c.pooler_hidden_act, dense(c, self.runtime, "dense")(x))


def pooled_logits(
    config: DebertaConfig, runtime: Runtime, states: jax.Array, positions: jax.Array, classes: int, deterministic: bool
) -> Float[Array, "B P C"]:
    """Declares ``pooler`` and ``classifier`` in the calling module and reads the texts that start at ``positions``."""
    x = Pooler(config, runtime, name="pooler")(take_positions(states, positions), deterministic)
    rate = config.hidden_dropout_prob if config.cls_dropout is None else config.cls_dropout
    return classify(config, runtime, "classifier", Dropout(rate)(x, deterministic), classes)


def transform(config: DebertaConfig, runtime: Runtime, x: jax.Array, width: int) -> jax.Array:
    """Declares ``dense`` and ``LayerNorm`` in the calling module: dense, activation, LayerNorm."""
    x = activate(config.hidden_act, dense(config, runtime, "dense", out=width)(x))
    return LayerNorm(width, config.layer_norm_eps, runtime, name="LayerNorm")(x)


class Transform(nn.Module):
    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return transform(self.config, self.runtime, x, self.config.embedding_width)


class Predictions(nn.Module):
    """Vocabulary logits [B,P,V] from states [B,P,D], the decoder tied to the word table unless the config unties it.

    ``legacy`` puts dense and LayerNorm under ``transform``, as transformers' ``cls.predictions`` does. ``factored``
    gives the logits' factors in place of their product.
    """

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(
        self, x: Float[Array, "B P D"], words: Float[Array, "V E"], factored: bool
    ) -> Float[Array, "B P V"] | FactoredOutput:
        c, run = self.config, self.runtime
        if c.legacy:
            x = Transform(c, run, name="transform")(x)
        else:
            x = transform(c, run, x, c.embedding_width)
        bias = self.param("bias", declare(nn.initializers.zeros_init(), ("vocab",)), (c.vocab_size,), run.param_dtype)
        if c.tie_word_embeddings:
            if factored:
                return FactoredOutput(x, words, bias)
            logits = product("BPE,VE->BPV", x, words.astype(x.dtype))
        else:
            shape, axes = (c.embedding_width, c.vocab_size), ("embed", "vocab")
            decoder = Linear(shape, axes, c.initializer_range, run, use_bias=False, name="decoder")
            logits = decoder(x, out_dtype=jnp.float32)
            if factored:  # the product above is then read by nothing, and not compiled
                return FactoredOutput(x, decoder.variables["params"]["kernel"].T, bias)
        return constrain(logits + align(bias.astype(jnp.float32), logits), ("batch", "length", "vocab"))


class LegacyHead(nn.Module):
    """The names of transformers: ``cls.predictions``."""

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x, words, factored):
        return Predictions(self.config, self.runtime, name="predictions")(x, words, factored)


class OriginalHead(nn.Module):
    """The names of the released files: ``lm_predictions.lm_head``."""

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x, words, factored):
        return Predictions(self.config, self.runtime, name="lm_head")(x, words, factored)


class ReplacedTokenHead(nn.Module):
    """One logit per token, positive where the token is judged replaced: [B,T].

    Each token's vector is joined by that of its text's first token before the LayerNorm (as in
    Microsoft's code).
    """

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, states: Float[Array, "B T D"], starts: Int[Array, "B T"]) -> Float[Array, "B T"]:
        c, run = self.config, self.runtime
        x = states + take_positions(states, starts)
        x = LayerNorm(c.hidden_size, c.layer_norm_eps, run, name="LayerNorm")(x)
        x = activate(c.hidden_act, dense(c, run, "dense")(x))
        return classify(c, run, "classifier", x, 1)[..., 0]
