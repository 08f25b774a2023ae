"""Token ids -> the input of the first layer (section 2.2 of He et al. 2021; positions are relative, so none here)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.models.layers import Dropout, EmbeddingTable, LayerNorm, Linear, Runtime
from deberta_jax.ops.embedding_lookup import take_rows, take_sharded_rows


class Embeddings(nn.Module):
    """Word, absolute-position and type embeddings, projected to D, normalised, zeroed at padding, dropped out.

    Returns the embeddings [B,T,D], the word table [V,E] for a tied decoder, and the absolute positions' vectors
    [B,T,E] for the mask decoder (None where the model has none).
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
    ) -> tuple[Float[Array, "B T D"], Float[Array, "V E"], Float[Array, "#B T E"] | None]:
        c, run = self.config, self.runtime
        width, spread = c.embedding_width, c.initializer_range
        words = EmbeddingTable(
            c.vocab_size, width, ("vocab", "embed"), spread, run, zero_row=c.pad_token_id, name="word_embeddings"
        )()
        x = inputs_embeds
        if input_ids is not None:
            x = take_sharded_rows(words, input_ids, run.dtype)
            # As torch's padding_idx: the row of the padding token learns nothing from being an input.
            x = jnp.where((input_ids == c.pad_token_id)[..., None], jax.lax.stop_gradient(x), x)
        x = jnp.asarray(x, run.dtype)
        positions = None
        if c.has_position_table:
            table = EmbeddingTable(
                c.max_position_embeddings, width, (None, "embed"), spread, run, name="position_embeddings"
            )()
            positions = take_rows(table, position_ids).astype(run.dtype)
            if c.position_biased_input:
                x = x + positions
        if c.type_vocab_size > 0:
            table = EmbeddingTable(
                c.type_vocab_size, width, (None, "embed"), spread, run, name="token_type_embeddings"
            )()
            types = jnp.zeros(x.shape[:2], jnp.int32) if token_type_ids is None else token_type_ids
            x = x + take_rows(table, types).astype(run.dtype)
        if width != c.hidden_size:
            x = Linear((width, c.hidden_size), (None, "embed"), spread, run, use_bias=False, name="embed_proj")(x)
        x = LayerNorm(c.hidden_size, c.layer_norm_eps, run, name="LayerNorm")(x)
        if token_mask is not None:
            # where, not a product: a padding id outside the table must not leak its NaN.
            x = jnp.where(token_mask[..., None], x, jnp.zeros((), x.dtype))
        return Dropout(c.hidden_dropout_prob)(x, deterministic), words, positions


def check_length(config: DebertaConfig, length: int) -> None:
    """Refuses texts longer than the absolute position table, which has no row for them.

    Raises:
      InputError: with the two lengths.
    """
    if config.has_position_table and length > config.max_position_embeddings:
        raise InputError(
            f"{length} tokens, but this model has absolute positions for {config.max_position_embeddings} "
            "(max_position_embeddings); truncate the text"
        )
