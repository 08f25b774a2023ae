"""Runs embeddings and encoder, and derives masks, text starts and position ids from the arguments of a model."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from deberta_jax.config import DebertaConfig
from deberta_jax.models.attention import AttentionContext
from deberta_jax.models.embeddings import Embeddings, check_length
from deberta_jax.models.encoder import Encoder
from deberta_jax.models.layers import Runtime
from deberta_jax.ops.attention.masks import segment_starts
from deberta_jax.ops.quantization import QuantizedArray


@dataclasses.dataclass(frozen=True)
class BackboneOutput:
    """Holds the results of embeddings and encoder, from which the heads compute theirs.

    Attributes:
      states: the last hidden states [B,T,D].
      starts: for each token the position where its text starts, int32 [B,T].
      word_embeddings: the table [V,E], which may be quantized.
      hidden_states, attentions: as in ``EncoderOutput``.
    """

    states: jax.Array
    starts: jax.Array
    word_embeddings: jax.Array | QuantizedArray
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
    attention_bias=None,
    deterministic: bool = True,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
) -> BackboneOutput:
    """Declares ``embeddings`` and ``encoder`` in the calling module and runs them.

    Args:
      mask_decoder: the last layer is the enhanced mask decoder; see ``Encoder``.
      attention_mask and the following: see ``Model.__call__``.

    Raises:
      InputError: a text is longer than the table of absolute positions.
    """
    tokens = input_ids if input_ids is not None else inputs_embeds
    assert tokens is not None
    batch, length = tokens.shape[:2]
    mask = None if attention_mask is None else jnp.asarray(attention_mask) != 0
    token_mask = real_tokens(mask, segment_ids)
    starts = jnp.broadcast_to(segment_starts(token_mask, segment_ids, length), (batch, length))
    if segment_ids is None and position_ids is None:
        check_length(config, length)
    if position_ids is None:
        # In a packed row the positions of every text count from 0. Otherwise they count from the row's start, padding
        # included, as in transformers.
        position_ids = jnp.arange(length, dtype=jnp.int32)[None]
        if segment_ids is not None:
            position_ids = position_ids - starts
    x, word_embeddings, positions = Embeddings(config, runtime, name="embeddings")(
        input_ids, inputs_embeds, token_type_ids, position_ids, token_mask, deterministic
    )
    last, states, weights = Encoder(config, runtime, name="encoder")(
        x,
        token_mask,
        AttentionContext(
            mask=mask,
            segment_ids=segment_ids,
            bias=attention_bias,
            deterministic=deterministic,
            return_weights=output_attentions,
        ),
        positions if mask_decoder else None,
        output_hidden_states,
    )
    return BackboneOutput(
        last,
        starts,
        word_embeddings,
        None if states is None else (x, *states),
        None if weights is None else tuple(weights),
    )


def real_tokens(
    mask: Bool[Array, "B T"] | Bool[Array, "B T T"] | None, segment_ids: Int[Array, "B T"] | None
) -> Bool[Array, "B T"] | None:
    """Returns True for every token that is not padding; None if neither argument is given.

    In a mask [B,T,T] a token that may attend to nothing is padding.
    """
    real = None
    if mask is not None:
        real = mask.any(axis=-1) if mask.ndim == 3 else mask
    if segment_ids is not None:
        real = segment_ids != 0 if real is None else real & (segment_ids != 0)
    return real


class Backbone(nn.Module):
    """Runs ``run_backbone`` as a module with its own name, for the models with a head."""

    config: DebertaConfig
    runtime: Runtime
    mask_decoder: bool = False

    @nn.compact
    def __call__(self, input_ids, **inputs) -> BackboneOutput:
        return run_backbone(self.config, self.runtime, input_ids, mask_decoder=self.mask_decoder, **inputs)
