"""What models return: frozen dataclasses that pass through ``jax.jit``. A field not asked for is None."""

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncoderOutput:
    """last_hidden_state [B,T,D]; hidden_states: L+1 arrays [B,T,D], the embeddings first; attentions: L arrays
    [B,N,T,T], softmax weights before dropout, float32."""

    last_hidden_state: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadOutput:
    """logits, float32, of the shape the model's docstring gives; the rest as in EncoderOutput."""

    logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FactoredOutput:
    """Vocabulary logits before their product: ``states @ table.T + bias`` of states [B,P,E], table [V,E], bias [V]."""

    states: jax.Array
    table: jax.Array
    bias: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SpanOutput:
    """start_logits and end_logits [B,T], float32; the rest as in EncoderOutput."""

    start_logits: jax.Array
    end_logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
