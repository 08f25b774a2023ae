"""Disentangled self-attention of one layer: projections of content and of the relative table, then ``ops.attention``.

One module for all generations. v2/v3 with ``share_att_key`` project the relative table with the query and key
projections themselves, biases included; otherwise with two of its own. v1 is the case without a key bias and without a
bias on the content-to-position projection.
"""

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.config import V1, DebertaConfig
from deberta_jax.models.layers import Dropout, LayerNorm, Linear, Runtime
from deberta_jax.ops.attention import disentangled_attention
from deberta_jax.sharding import constrain


class SelfAttention(nn.Module):
    """Content of ``x`` attends to ``source`` (the same array but in the mask decoder); context and weights."""

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        source: Float[Array, "B T D"],
        table: Float[Array, "R D"] | None,
        rows: Int[np.ndarray, " U"],
        mask: Bool[Array, "B T"] | Bool[Array, "B T T"] | None,
        segment_ids: Int[Array, "B T"] | None,
        deterministic: bool,
        return_weights: bool,
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T T"] | None]:
        c, v1 = self.config, self.config.model_type == V1
        query_proj, key_proj = self.projection("query_proj"), self.projection("key_proj", use_bias=not v1)
        query, key, value = query_proj(x), key_proj(source), self.projection("value_proj")(source)
        query, key, value = (constrain(a, ("batch", "length", "heads", "kv")) for a in (query, key, value))
        pos_key = pos_query = None
        if table is not None:
            table = Dropout(c.hidden_dropout_prob)(table, deterministic)
        if table is not None and "c2p" in c.relative_terms:
            pos_key = (key_proj if c.share_att_key else self.projection("pos_key_proj", use_bias=not v1))(table)
        if table is not None and "p2c" in c.relative_terms:
            pos_query = (query_proj if c.share_att_key else self.projection("pos_query_proj"))(table)
        mix_scores = self.head_map("head_logits_proj") if c.talking_head else None
        mix_weights = self.head_map("head_weights_proj") if c.talking_head else None
        drops = not deterministic and c.attention_probs_dropout_prob > 0
        return disentangled_attention(
            query, key, value, pos_key, pos_query, rows,
            scale=c.score_scale, mask=mask, segment_ids=segment_ids,
            dropout_rate=c.attention_probs_dropout_prob, dropout_key=self.make_rng("dropout") if drops else None,
            mix_scores=mix_scores, mix_weights=mix_weights, return_weights=return_weights, impl=self.runtime.attention,
        )  # fmt: skip

    def projection(self, name: str, use_bias: bool = True) -> Linear:
        c = self.config
        shape = (c.hidden_size, c.num_attention_heads, c.head_size)
        return Linear(shape, ("embed", "heads", "kv"), c.initializer_range, self.runtime, use_bias=use_bias, name=name)

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
    def __call__(self, x, source, table, rows, mask, segment_ids, deterministic, return_weights):
        c, run = self.config, self.runtime
        context, weights = SelfAttention(c, run, name="self")(
            x, source, table, rows, mask, segment_ids, deterministic, return_weights
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
