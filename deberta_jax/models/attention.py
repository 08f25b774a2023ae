"""Implements disentangled self-attention of one layer.

Projects hidden states and the relative table to heads, and calls ``ops.attention``, which computes c2p and p2c.

One module serves all generations. v2/v3 models with ``share_att_key`` project the relative table with the query and key
projections themselves, biases included; other models have two more projections for it. v1 has no key bias and no bias
on the content-to-position projection.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.config import V1, DebertaConfig
from deberta_jax.models.layers import Dropout, LayerNorm, Linear, Runtime, declare
from deberta_jax.ops.attention import disentangled_attention
from deberta_jax.sharding import constrain


class RelativePositions(NamedTuple):
    """Holds the relative positions of one sequence length, which all layers share.

    Attributes:
      table: the normalized rows of the relative table that some distance reads [R,D]; None for models without relative
        attention, and for prepared parameters, where every layer has projected tables.
      table_rows: the indices of these rows in the whole table, int32 [R].
      relative_index: for each distance from -(T-1) to T-1 the row of ``table`` that it reads, int32 [2T-1].
    """

    table: jax.Array | None
    table_rows: np.ndarray
    relative_index: np.ndarray


NO_POSITIONS = RelativePositions(None, np.zeros(0, np.int32), np.zeros(0, np.int32))
"""Stands for relative positions before the encoder has filled them in."""


class AttentionContext(NamedTuple):
    """Holds what the attention of a layer needs besides hidden states.

    Attributes:
      relative: the relative positions of this length; the encoder fills them in.
      mask, segment_ids: as in ``Model.__call__``; the mask is bool.
      bias: ``attention_bias`` of ``Model.__call__``.
      layer: number of the layer, from 0; an array inside a loop over layers.
      deterministic: False applies dropout.
      return_weights: also return the softmax weights.
    """

    relative: RelativePositions = NO_POSITIONS
    mask: Bool[Array, "B T"] | Bool[Array, "B T T"] | None = None
    segment_ids: Int[Array, "B T"] | None = None
    bias: Float[Array, "..."] | None = None
    layer: Any = 0
    deterministic: bool = True
    return_weights: bool = False


def table_projections(config: DebertaConfig) -> dict[str, tuple[str, bool]]:
    """Returns how the relative table is projected, for the score terms (c2p, p2c) that the model has.

    Returns:
      From ``pos_key`` and ``pos_query`` to the name of the projection and whether it has a bias.
    """
    shared, terms = config.share_att_key, config.relative_terms if config.relative_attention else ()
    projections = {
        "c2p": ("pos_key", ("key_proj" if shared else "pos_key_proj", config.model_type != V1)),
        "p2c": ("pos_query", ("query_proj" if shared else "pos_query_proj", True)),
    }
    return dict(projections[term] for term in terms)


def keep_terms(
    config: DebertaConfig, layer: Any, query: jax.Array, pos_key: jax.Array | None, pos_query: jax.Array | None
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Returns query and tables with which a layer's scores have its own relative terms and its own scale.

    All layers run the same code, with the terms and the scale of the whole model. The table of a term that a layer
    lacks becomes zero. The query and its table grow by the ratio of the two scales, and all scores with them.

    Args:
      layer: number of the layer; an array inside a loop over layers.
      query: [B,T,N,H].
      pos_key, pos_query: the projected tables [R,N,H], or None.
    """
    layers = config.layer_pos_att_type or ()
    most = len(config.pos_att_type)
    rows = [[math.sqrt((1 + most) / (1 + len(terms))), *(term in terms for term in ("c2p", "p2c"))] for terms in layers]
    ratio, c2p, p2c = jnp.asarray(np.array(rows, np.float32))[layer]

    def times(array: jax.Array, factor: jax.Array) -> jax.Array:
        return (array.astype(jnp.float32) * factor).astype(array.dtype)

    return (
        times(query, ratio),
        None if pos_key is None else times(pos_key, c2p),
        None if pos_query is None else times(pos_query, p2c * ratio),
    )


def head_projection(config: DebertaConfig, runtime: Runtime, use_bias: bool, **options) -> Linear:
    """Returns the projection from the hidden width D to heads [N,H]. ``options`` are fields of the module."""
    shape = (config.hidden_size, config.num_attention_heads, config.head_size)
    axes = ("embed", "heads", "kv")
    return Linear(shape, axes, config.initializer_range, runtime, use_bias=use_bias, **options)


class SelfAttention(nn.Module):
    """Computes attention of the tokens of ``x`` to those of ``source``.

    The two arrays differ only in the enhanced mask decoder.

    Returns:
      The context [B,T,N,H], and the softmax weights [B,N,T,T] in float32, or None unless ``return_weights``.
    """

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        source: Float[Array, "B T D"],
        context: AttentionContext,
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T T"] | None]:
        c, v1 = self.config, self.config.model_type == V1
        query_proj, key_proj = self.projection("query_proj"), self.projection("key_proj", use_bias=not v1)
        query, key, value = query_proj(x), key_proj(source), self.projection("value_proj")(source)
        query, key, value = (constrain(a, ("batch", "length", "heads", "kv")) for a in (query, key, value))
        pos_key, pos_query = self.position_tables(
            context.relative,
            context.deterministic,
            **({"query_proj": query_proj, "key_proj": key_proj} if c.share_att_key else {}),
        )
        mix_scores = self.head_map("head_logits_proj") if c.talking_head else None
        mix_weights = self.head_map("head_weights_proj") if c.talking_head else None
        if c.layer_pos_att_type is not None:
            query, pos_key, pos_query = keep_terms(c, context.layer, query, pos_key, pos_query)
        drops = not context.deterministic and c.attention_probs_dropout_prob > 0
        modifier = self.runtime.score_modifier
        return disentangled_attention(
            query,
            key,
            value,
            pos_key,
            pos_query,
            context.relative.relative_index,
            scale=c.score_scale,
            attention_mask=context.mask,
            segment_ids=context.segment_ids,
            dropout_rate=c.attention_probs_dropout_prob,
            dropout_key=self.make_rng("dropout") if drops else None,
            mix_scores=mix_scores,
            mix_weights=mix_weights,
            attention_bias=context.bias,
            score_modifier=None if modifier is None else functools.partial(modifier, layer=context.layer),
            return_weights=context.return_weights,
            implementation=self.runtime.attention,
        )

    def position_tables(self, relative: RelativePositions, deterministic: bool, **shared: Linear):
        """Returns the relative table projected to keys and to queries [R,N,H]; None for a term that the model lacks.

        Args:
          relative: the relative positions of this length.
          deterministic: False applies dropout to the table.
          shared: the query and key projections by name, where they project the table too.

        Raises:
          ValueError: training with parameters that are prepared for inference.
        """
        c = self.config
        projections = table_projections(c)
        if self.runtime.prepared:
            if not deterministic:
                raise ValueError("parameters prepared for inference cannot be trained; use the original ones")
            tables = {name: self.prepared_table(name, relative.table_rows) for name in projections}
        elif relative.table is not None:
            table = Dropout(c.hidden_dropout_prob)(relative.table, deterministic)
            projection = lambda name, use_bias: shared[name] if name in shared else self.projection(name, use_bias)
            tables = {name: projection(*arguments)(table) for name, arguments in projections.items()}
        else:
            tables = {}
        return tables.get("pos_key"), tables.get("pos_query")

    def prepared_table(self, name: str, table_rows: Int[np.ndarray, " R"]) -> Float[Array, "R N H"]:
        """Returns the rows of a table that ``prepare_for_inference`` has projected."""
        c = self.config
        shape = (2 * c.relative_span, c.num_attention_heads, c.head_size)
        table = self.param(
            name, declare(nn.initializers.zeros_init(), ("relpos", "heads", "kv")), shape, self.runtime.dtype
        )
        return jnp.take(table, table_rows, axis=0, mode="clip")

    def projection(self, name: str, use_bias: bool = True) -> Linear:
        """Returns the projection with this name from D to heads [N,H]."""
        return head_projection(self.config, self.runtime, use_bias, name=name)

    def head_map(self, name: str) -> jax.Array:
        """Returns the matrix with this name that mixes heads [N,N]."""
        return HeadMap(self.config, self.runtime, name=name)()


class HeadMap(nn.Module):
    """Holds the matrix [N,N] that mixes scores or weights across heads (v1's talking heads)."""

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self) -> Float[Array, "N N"]:
        heads = self.config.num_attention_heads
        initializer = nn.initializers.normal(self.config.initializer_range)
        return self.param("kernel", initializer, (heads, heads), self.runtime.param_dtype)


class Attention(nn.Module):
    """Applies self-attention, output projection, dropout, residual and LayerNorm.

    Returns:
      The result [B,T,D], and the attention weights of ``SelfAttention``.
    """

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x, source, context: AttentionContext):
        c, run = self.config, self.runtime
        attended, weights = SelfAttention(c, run, name="self")(x, source, context)
        shape = (c.num_attention_heads, c.head_size, c.hidden_size)
        output = Residual(c, run, shape, ("heads", "kv", "embed"), name="output")
        return output(attended, x, context.deterministic), weights


class Residual(nn.Module):
    """Computes ``LayerNorm(dropout(dense(x)) + residual)``, the end of both halves of a layer.

    Attributes:
      shape, axes: of the dense kernel; all axes but the last are contracted with ``x``.
    """

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
