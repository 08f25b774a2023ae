"""Defines the outputs of models: frozen dataclasses that pass through ``jax.jit``. Fields not asked for are None."""

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncoderOutput:
    """Holds the output of ``DebertaEncoder``.

    Attributes:
      last_hidden_state: [B,T,D], in the dtype of the computation.
      hidden_states: L+1 arrays [B,T,D]: the embeddings, then the output of each layer.
      attentions: L arrays [B,N,T,T], float32: the softmax weights before dropout.
    """

    last_hidden_state: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadOutput:
    """Holds the output of the models with one array of logits.

    Attributes:
      logits: float32; the model's docstring gives the shape.
      hidden_states, attentions: as in ``EncoderOutput``.
    """

    logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ProjectionInputs:
    """Holds the inputs of the output projection of a masked-LM head. The logits are ``states @ table.T + bias``.

    Attributes:
      states: [B,P,E], in the dtype of the computation.
      table: the word embeddings or the decoder's own matrix [V,E].
      bias: [V].
    """

    states: jax.Array
    table: jax.Array
    bias: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SpanOutput:
    """Holds the output of ``DebertaForQuestionAnswering``.

    Attributes:
      start_logits, end_logits: float32 [B,T].
      hidden_states, attentions: as in ``EncoderOutput``.
    """

    start_logits: jax.Array
    end_logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
