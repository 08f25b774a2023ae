"""Computes the input of the first layer from token ids.

Word, token-type and, where the config has them, absolute position embeddings are added. Relative positions enter in the
attention (He et al. 2021, DeBERTa, section 3).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.models.layers import Dropout, EmbeddingTable, LayerNorm, Linear, Runtime
from deberta_jax.ops.embedding_lookup import take_rows, take_sharded_rows
from deberta_jax.ops.quantization import QuantizedArray


class Embeddings(nn.Module):
    """Computes the sum of word, absolute position and token-type embeddings.

    The sum is projected to D, normalized, set to zero at padding, and dropout is applied.

    Returns:
      The embeddings [B,T,D]; the word embedding table [V,E], for a tied decoder; and the absolute position embeddings
      of the tokens [B,T,E], for the mask decoder (None for models without them).
    """

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "B T"] | None,
        inputs_embeds: Float[Array, "B T E"] | None,
        token_type_ids: Int[Array, "B T"] | None,
        position_ids: Int[Array, "#B T"],
        token_mask: Bool[Array, "B T"] | None,
        deterministic: bool,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "V E"] | QuantizedArray, Float[Array, "#B T E"] | None]:
        c, run = self.config, self.runtime
        width, stddev = c.embedding_width, c.initializer_range
        word_embeddings = EmbeddingTable(
            c.vocab_size, width, ("vocab", "embed"), stddev, run, zero_row=c.pad_token_id, name="word_embeddings"
        )()
        x = inputs_embeds
        if input_ids is not None:
            x = take_sharded_rows(word_embeddings, input_ids, run.dtype, gradient_dtype=run.gradient_dtype)
            # Like padding_idx in torch: the input embedding of the padding token gets no gradient.
            x = jnp.where((input_ids == c.pad_token_id)[..., None], jax.lax.stop_gradient(x), x)
        x = jnp.asarray(x, run.dtype)
        positions = None
        if c.has_position_table:
            size = c.max_position_embeddings
            table = EmbeddingTable(size, width, (None, "embed"), stddev, run, name="position_embeddings")()
            positions = take_rows(table, position_ids).astype(run.dtype)
            if c.position_biased_input:
                x = x + positions
        if c.type_vocab_size > 0:
            table = EmbeddingTable(
                c.type_vocab_size, width, (None, "embed"), stddev, run, name="token_type_embeddings"
            )()
            types = jnp.zeros(x.shape[:2], jnp.int32) if token_type_ids is None else token_type_ids
            x = x + take_rows(table, types).astype(run.dtype)
        if width != c.hidden_size:
            x = Linear((width, c.hidden_size), (None, "embed"), stddev, run, use_bias=False, name="embed_proj")(x)
        x = LayerNorm(c.hidden_size, c.layer_norm_eps, run, name="LayerNorm")(x)
        if token_mask is not None:
            # where, not a product: an id outside the table gives NaN, and NaN * 0 is NaN.
            x = jnp.where(token_mask[..., None], x, jnp.zeros((), x.dtype))
        return Dropout(c.hidden_dropout_prob)(x, deterministic), word_embeddings, positions


def check_length(config: DebertaConfig, length: int) -> None:
    """Checks that the model has absolute positions for ``length`` tokens, if it has absolute positions.

    Raises:
      InputError: ``length`` is larger; the message gives both numbers.
    """
    if config.has_position_table and length > config.max_position_embeddings:
        raise InputError(
            f"{length} tokens, but this model has absolute positions for {config.max_position_embeddings} "
            "(max_position_embeddings); truncate the text"
        )
