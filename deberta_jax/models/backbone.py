"""Embeddings and encoder together, and the one place where the callers' inputs become what the layers need."""

import dataclasses
from typing import TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from deberta_jax.config import DebertaConfig
from deberta_jax.models.embeddings import Embeddings, check_length
from deberta_jax.models.encoder import Encoder
from deberta_jax.models.layers import Runtime
from deberta_jax.ops.attention.masks import segment_starts


class Inputs(TypedDict, total=False):
    """Keyword arguments of every model's call.

    attention_mask: [B,T] of any dtype, nonzero for real tokens; or [B,T,T], nonzero where query t may read key s.
    token_type_ids, position_ids: int [B,T]; read only by models that have such tables.
    inputs_embeds: float [B,T,E] in place of input_ids.
    segment_ids: int [B,T], 0 for padding: several texts packed in a row, each kept to itself.
    deterministic: False turns dropout on (``rngs={"dropout": key}``).
    output_hidden_states, output_attentions: fill those fields of the output.
    """

    attention_mask: Shaped[Array, "B T"] | Shaped[Array, "B T T"] | None
    token_type_ids: Int[Array, "B T"] | None
    position_ids: Int[Array, "B T"] | None
    inputs_embeds: Float[Array, "B T E"] | None
    segment_ids: Int[Array, "B T"] | None
    deterministic: bool
    output_hidden_states: bool
    output_attentions: bool


@dataclasses.dataclass(frozen=True)
class Hidden:
    """The backbone's results for a head: states [B,T,D], where each token's text starts [B,T] or [B,1], the word
    table [V,E], and the optional outputs."""

    states: jax.Array
    starts: jax.Array
    words: jax.Array
    hidden_states: tuple[jax.Array, ...] | None
    attentions: tuple[jax.Array, ...] | None


def run_backbone(
    config: DebertaConfig,
    runtime: Runtime,
    input_ids: Int[Array, "B T"] | None,
    *,
    mask_decoder: bool = False,
    attention_mask=None,
    token_type_ids=None,
    position_ids=None,
    inputs_embeds=None,
    segment_ids=None,
    deterministic: bool = True,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
) -> Hidden:
    """Declares ``embeddings`` and ``encoder`` in the calling module and runs them.

    Raises:
      ValueError: both or neither of input_ids and inputs_embeds.
      InputError: a text longer than a table of absolute positions.
    """
    given = [a for a in (input_ids, inputs_embeds) if a is not None]
    if len(given) != 1:
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    batch, length = given[0].shape[:2]
    mask = None if attention_mask is None else jnp.asarray(attention_mask) != 0
    token_mask = real_tokens(mask, segment_ids)
    starts = jnp.broadcast_to(segment_starts(token_mask, segment_ids, length), (batch, length))
    if segment_ids is None and position_ids is None:
        check_length(config, length)
    if position_ids is None:
        # Within a packed row every text counts from 0. Alone, a text counts from the row's start, padding included,
        # as in transformers.
        position_ids = jnp.arange(length, dtype=jnp.int32)[None]
        if segment_ids is not None:
            position_ids = position_ids - starts
    x, words, positions = Embeddings(config, runtime, name="embeddings")(
        input_ids, inputs_embeds, token_type_ids, position_ids, token_mask, deterministic
    )
    last, states, weights = Encoder(config, runtime, name="encoder")(
        x,
        token_mask,
        mask,
        segment_ids,
        positions if mask_decoder else None,
        deterministic,
        output_hidden_states,
        output_attentions,
    )
    return Hidden(
        last,
        starts,
        words,
        None if states is None else (x, *states),
        None if weights is None else tuple(weights),
    )


def real_tokens(
    mask: Bool[Array, "B T"] | Bool[Array, "B T T"] | None, segment_ids: Int[Array, "B T"] | None
) -> Bool[Array, "B T"] | None:
    """True for tokens that are no padding. In a pair mask padding is a token that may read nothing."""
    real = None
    if mask is not None:
        real = mask.any(axis=-1) if mask.ndim == 3 else mask
    if segment_ids is not None:
        real = segment_ids != 0 if real is None else real & (segment_ids != 0)
    return real


class Backbone(nn.Module):
    """``run_backbone`` under a name of its own, for the models with a head."""

    config: DebertaConfig
    runtime: Runtime
    mask_decoder: bool = False

    @nn.compact
    def __call__(self, input_ids, **inputs) -> Hidden:
        return run_backbone(self.config, self.runtime, input_ids, mask_decoder=self.mask_decoder, **inputs)
