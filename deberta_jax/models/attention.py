"""Implements disentangled self-attention of one layer: projections of content and relative table, ``ops.attention``.

One module for all generations. v2/v3 with ``share_att_key`` project the relative table with the query and key
projections themselves, biases included; otherwise with two of its own. v1 is the case without a key bias and without a
bias on the content-to-position projection.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.config import V1, DebertaConfig
from deberta_jax.models.layers import Dropout, LayerNorm, Linear, Runtime, declare
from deberta_jax.ops.attention import disentangled_attention
from deberta_jax.sharding import constrain


class Relative(NamedTuple):
    """Holds what all layers share of the relative positions of a length.

    Attributes:
      table: the normalized rows that some distance reads [R,D]; None without relative attention, or where every layer
        has projected tables already.
      table_rows: their numbers in the whole table, int32 [R].
      relative_index: which of them each distance from -(T-1) to T-1 reads, int32 [2T-1].
    """

    table: jax.Array | None
    table_rows: np.ndarray
    relative_index: np.ndarray


def table_projections(config: DebertaConfig) -> dict[str, tuple[str, bool]]:
    """Which projection, with a bias or not, makes the relative table keys and queries; only the model's own terms."""
    shared, terms = config.share_att_key, config.relative_terms if config.relative_attention else ()
    projections = {
        "c2p": ("pos_key", ("key_proj" if shared else "pos_key_proj", config.model_type != V1)),
        "p2c": ("pos_query", ("query_proj" if shared else "pos_query_proj", True)),
    }
    return dict(projections[term] for term in terms)


def head_projection(config: DebertaConfig, runtime: Runtime, use_bias: bool, **options) -> Linear:
    """From width to heads."""
    shape = (config.hidden_size, config.num_attention_heads, config.head_size)
    axes = ("embed", "heads", "kv")
    return Linear(shape, axes, config.initializer_range, runtime, use_bias=use_bias, **options)


class SelfAttention(nn.Module):
    """Content of ``x`` attends to ``source`` (the same array but in the mask decoder); context and weights."""

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        source: Float[Array, "B T D"],
        relative: Relative,
        mask: Bool[Array, "B T"] | Bool[Array, "B T T"] | None,
        segment_ids: Int[Array, "B T"] | None,
        deterministic: bool,
        return_weights: bool,
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T T"] | None]:
        c, v1 = self.config, self.config.model_type == V1
        query_proj, key_proj = self.projection("query_proj"), self.projection("key_proj", use_bias=not v1)
        query, key, value = query_proj(x), key_proj(source), self.projection("value_proj")(source)
        query, key, value = (constrain(a, ("batch", "length", "heads", "kv")) for a in (query, key, value))
        pos_key, pos_query = self.position_tables(
            relative, deterministic, **({"query_proj": query_proj, "key_proj": key_proj} if c.share_att_key else {})
        )
        mix_scores = self.head_map("head_logits_proj") if c.talking_head else None
        mix_weights = self.head_map("head_weights_proj") if c.talking_head else None
        drops = not deterministic and c.attention_probs_dropout_prob > 0
        return disentangled_attention(
            query,
            key,
            value,
            pos_key,
            pos_query,
            relative.relative_index,
            scale=c.score_scale,
            attention_mask=mask,
            segment_ids=segment_ids,
            dropout_rate=c.attention_probs_dropout_prob,
            dropout_key=self.make_rng("dropout") if drops else None,
            mix_scores=mix_scores,
            mix_weights=mix_weights,
            return_weights=return_weights,
            implementation=self.runtime.attention,
        )

    def position_tables(self, relative: Relative, deterministic: bool, **shared: Linear):
        """The relative table as keys and as queries [R,N,H], each None where the model leaves that term out."""
        c = self.config
        projections = table_projections(c)
        if self.runtime.prepared:
            if not deterministic:
                raise ValueError("parameters prepared for inference cannot be trained; use the original ones")
            tables = {name: self.prepared_table(name, relative.table_rows) for name in projections}
        elif relative.table is not None:
            table = Dropout(c.hidden_dropout_prob)(relative.table, deterministic)
            of = lambda name, use_bias: shared[name] if name in shared else self.projection(name, use_bias)
            tables = {name: of(*projection)(table) for name, projection in projections.items()}
        else:
            tables = {}
        return tables.get("pos_key"), tables.get("pos_query")

    def prepared_table(self, name: str, table_rows: Int[np.ndarray, " R"]) -> Float[Array, "R N H"]:
        c = self.config
        shape = (2 * c.relative_span, c.num_attention_heads, c.head_size)
        table = self.param(
            name, declare(nn.initializers.zeros_init(), ("relpos", "heads", "kv")), shape, self.runtime.dtype
        )
        return jnp.take(table, table_rows, axis=0, mode="clip")

    def projection(self, name: str, use_bias: bool = True) -> Linear:
        return head_projection(self.config, self.runtime, use_bias, name=name)

    def head_map(self, name: str) -> jax.Array:
        return HeadMap(self.config, self.runtime, name=name)()


class HeadMap(nn.Module):
    """A bias-free map across heads [N,N] (v1's talking heads)."""

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self) -> Float[Array, "N N"]:
        heads = self.config.num_attention_heads
        initializer = nn.initializers.normal(self.config.initializer_range)
        return self.param("kernel", initializer, (heads, heads), self.runtime.param_dtype)


class Attention(nn.Module):
    """Self-attention, output projection, dropout, residual, LayerNorm."""

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x, source, relative, mask, segment_ids, deterministic, return_weights):
        c, run = self.config, self.runtime
        context, weights = SelfAttention(c, run, name="self")(
            x, source, relative, mask, segment_ids, deterministic, return_weights
        )
        shape = (c.num_attention_heads, c.head_size, c.hidden_size)
        return Residual(c, run, shape, ("heads", "kv", "embed"), name="output")(context, x, deterministic), weights


class Residual(nn.Module):
    """``LayerNorm(dropout(dense(x)) + residual)``: the end of both halves of a layer."""

    config: DebertaConfig
    runtime: Runtime
    shape: tuple[int, ...]
    axes: tuple[str, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "..."], residual: Float[Array, "B T D"], deterministic: bool):
        c, run = self.config, self.runtime
        contract = len(self.shape) - 1
        x = Linear(self.shape, self.axes, c.initializer_range, run, contract=contract, name="dense")(x)
        x = Dropout(c.hidden_dropout_prob)(x, deterministic)
        return LayerNorm(c.hidden_size, c.layer_norm_eps, run, name="LayerNorm")(x + residual)
