"""Defines the layers of the heads: pooler, classifiers, the masked-LM head and the replaced-token head."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deberta_jax.config import DebertaConfig
from deberta_jax.models.layers import Dropout, LayerNorm, Linear, Runtime, declare
from deberta_jax.models.outputs import ProjectionInputs
from deberta_jax.ops.activations import activate
from deberta_jax.ops.products import align, product
from deberta_jax.ops.quantization import QuantizedArray, dense_values
from deberta_jax.sharding import constrain


def dense(config: DebertaConfig, runtime: Runtime, name: str, width: int | None = None, out: int | None = None):
    """Returns a ``Linear`` from ``width`` to ``out``; both are the hidden width by default."""
    shape = (width or config.hidden_size, out or config.hidden_size)
    return Linear(shape, ("embed", None), config.initializer_range, runtime, name=name)


def classify(config: DebertaConfig, runtime: Runtime, name: str, x: jax.Array, classes: int) -> jax.Array:
    """Declares a dense layer in the calling module and returns its float32 logits [..., C] for ``x`` [..., D]."""
    return dense(config, runtime, name, out=classes)(x, out_dtype=jnp.float32)


def take_positions(x: Float[Array, "B T D"], positions: Int[Array, "B P"]) -> Float[Array, "B P D"]:
    """Returns the vectors at the given positions. For a position of -1 (none) the vector has no meaning."""
    return jnp.take_along_axis(x, jnp.maximum(positions, 0)[..., None], axis=1)


class Pooler(nn.Module):
    """Applies dropout, dense and activation to the vectors of the texts' first tokens."""

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x: Float[Array, "B P D"], deterministic: bool) -> Float[Array, "B P D"]:
        c = self.config
        x = Dropout(c.pooler_dropout)(x, deterministic)
        x = dense(c, self.runtime, "dense")(x)
        return activate(c.pooler_hidden_act, x, forward_mode=self.runtime.forward_mode)


def pooled_logits(
    config: DebertaConfig, runtime: Runtime, states: jax.Array, positions: jax.Array, classes: int, deterministic: bool
) -> Float[Array, "B P C"]:
    """Declares ``pooler`` and ``classifier`` in the calling module and returns the logits of texts.

    Args:
      states: hidden states [B,T,D].
      positions: where the texts start, int [B,P]; -1 for none.
      classes: the number C of logits for each text.
    """
    x = Pooler(config, runtime, name="pooler")(take_positions(states, positions), deterministic)
    rate = config.hidden_dropout_prob if config.cls_dropout is None else config.cls_dropout
    return classify(config, runtime, "classifier", Dropout(rate)(x, deterministic), classes)


def prediction_transform(config: DebertaConfig, runtime: Runtime, x: jax.Array, width: int) -> jax.Array:
    """Declares ``dense`` and ``LayerNorm`` in the calling module; applies dense to ``width``, activation, LayerNorm."""
    x = dense(config, runtime, "dense", out=width)(x)
    x = activate(config.hidden_act, x, forward_mode=runtime.forward_mode)
    return LayerNorm(width, config.layer_norm_eps, runtime, name="LayerNorm")(x)


class PredictionTransform(nn.Module):
    """Applies ``prediction_transform`` as a module with its own name."""

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return prediction_transform(self.config, self.runtime, x, self.config.embedding_width)


class Predictions(nn.Module):
    """Computes vocabulary logits [B,P,V], float32, from hidden states [B,P,D].

    The output projection is the word embedding table, unless the config has ``tie_word_embeddings`` false. With
    ``config.legacy`` dense and LayerNorm are parameters of a module ``transform``, as in transformers'
    ``cls.predictions``. ``return_projection_inputs`` returns the inputs of the output projection instead.
    """

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B P D"],
        word_embeddings: Float[Array, "V E"] | QuantizedArray,
        return_projection_inputs: bool,
    ) -> Float[Array, "B P V"] | ProjectionInputs:
        c, run = self.config, self.runtime
        if c.legacy:
            x = PredictionTransform(c, run, name="transform")(x)
        else:
            x = prediction_transform(c, run, x, c.embedding_width)
        bias = self.param("bias", declare(nn.initializers.zeros_init(), ("vocab",)), (c.vocab_size,), run.param_dtype)
        if c.tie_word_embeddings:
            if return_projection_inputs:
                return ProjectionInputs(x, dense_values(word_embeddings), bias)
            table = dense_values(word_embeddings, x.dtype)
            logits = product("BPE,VE->BPV", x, table, forward_mode=run.forward_mode)
        else:
            shape, axes = (c.embedding_width, c.vocab_size), ("embed", "vocab")
            decoder = Linear(shape, axes, c.initializer_range, run, use_bias=False, name="decoder")
            logits = decoder(x, out_dtype=jnp.float32)
            if return_projection_inputs:  # XLA removes the product above, which nothing reads then
                return ProjectionInputs(x, decoder.variables["params"]["kernel"].T, bias)
        return constrain(logits + align(bias.astype(jnp.float32), logits), ("batch", "length", "vocab"))


class LegacyHead(nn.Module):
    """Computes ``Predictions`` under the names that transformers' masked-LM models have: ``cls.predictions``."""

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x, word_embeddings, return_projection_inputs):
        return Predictions(self.config, self.runtime, name="predictions")(x, word_embeddings, return_projection_inputs)


class OriginalHead(nn.Module):
    """Computes ``Predictions`` under the names of Microsoft's released files: ``lm_predictions.lm_head``."""

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x, word_embeddings, return_projection_inputs):
        return Predictions(self.config, self.runtime, name="lm_head")(x, word_embeddings, return_projection_inputs)


class ReplacedTokenHead(nn.Module):
    """Computes one float32 logit for each token [B,T], positive where the token is found to be replaced.

    The vector of the text's first token is added to that of each token before the LayerNorm, as in Microsoft's code.
    """

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, states: Float[Array, "B T D"], starts: Int[Array, "B T"]) -> Float[Array, "B T"]:
        c, run = self.config, self.runtime
        x = states + take_positions(states, starts)
        x = LayerNorm(c.hidden_size, c.layer_norm_eps, run, name="LayerNorm")(x)
        x = activate(c.hidden_act, dense(c, run, "dense")(x), forward_mode=run.forward_mode)
        return classify(c, run, "classifier", x, 1)[..., 0]
