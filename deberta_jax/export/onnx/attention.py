"""Adds the disentangled self-attention of one layer to a graph.

As in ``ops.attention.reference``, position scores are one product with the rows of the projected relative table, from
which the score of each pair of tokens is gathered. The scale of the scores is a factor of the query projections, so no
node multiplies the scores.
"""

import math

import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.export.onnx.embeddings import Mask
from deberta_jax.export.onnx.graph import Graph
from deberta_jax.export.onnx.modules import Params, linear
from deberta_jax.export.onnx.relative_position import RelativePositions
from deberta_jax.models.attention import table_projections

_HEADS_FIRST = (0, 2, 1, 3)
_FEATURES_BEFORE_TOKENS = (0, 2, 3, 1)


class SelfAttention:
    """Adds the attention of a layer.

    Attributes:
      graph, config: where it is added, and the architecture.
      params: the parameters of ``attention/self`` of this layer.
      terms: the relative terms of this layer.
    """

    def __init__(self, graph: Graph, config: DebertaConfig, params: Params, layer: int):
        self.graph, self.config, self.params = graph, config, params
        self.terms = config.relative_terms
        counted = len(config.pos_att_type)
        if config.layer_pos_att_type is not None:
            self.terms = config.layer_pos_att_type[layer]
            counted = len(self.terms)
        self.scale = 1.0 / math.sqrt(config.head_size * (1 + counted))

    def add(self, x: str, source: str, mask: Mask, relative: RelativePositions | None) -> str:
        """Adds the attention of the tokens of ``x`` to those of ``source``, and returns the context [B,T,N*H].

        Args:
          x, source: [B,T,D].
          mask: of the tokens.
          relative: the relative table and index; None for models without relative attention.
        """
        graph, c = self.graph, self.config
        query = self._heads("query_proj", x, _HEADS_FIRST)
        key = self._heads("key_proj", source, _FEATURES_BEFORE_TOKENS)
        value = self._heads("value_proj", source, _HEADS_FIRST)
        scores = graph.wide(graph.add("MatMul", query, key))
        for term in self.terms:
            assert relative is not None
            scores = graph.add("Add", scores, self._position_scores(term, query, key, relative))
        if c.talking_head:
            scores = self._mix("head_logits_proj", scores)
        weights = graph.add("Softmax", graph.add("Add", scores, mask.scores), axis=-1)
        if c.talking_head:
            weights = self._mix("head_weights_proj", weights)
        context = graph.add("MatMul", graph.narrow(weights), value)
        context = graph.add("Transpose", context, perm=_HEADS_FIRST)
        context = graph.reshape(context, (0, 0, c.num_attention_heads * c.head_size))
        # A padded token gets no context, whatever its softmax is.
        return graph.add("Mul", context, mask.factors)

    def _heads(self, name: str, x: str, order: tuple[int, ...]) -> str:
        """Adds a projection of tokens, and the transposition of its heads [B,T,N,H] to ``order``."""
        heads = self.graph.reshape(self._project(name, x), (0, 0, self.config.num_attention_heads, -1))
        return self.graph.add("Transpose", heads, perm=order)

    def _project(self, name: str, x: str, use_bias: bool = True) -> str:
        params = self.params[name] if use_bias else {"kernel": self.params[name]["kernel"]}
        scale = self.scale if "query" in name else 1.0
        outputs = self.config.num_attention_heads * self.config.head_size
        return linear(self.graph, name, x, params, outputs=outputs, scale=scale)

    def _position_scores(self, term: str, query: str, key: str, relative: RelativePositions) -> str:
        """Adds the scores of ``c2p`` or ``p2c``, float32 [B,N,T,T].

        ONNX Runtime computes the projection of the whole table once, when it loads the file; the rows that a length
        needs are selected afterwards.
        """
        graph, content_first = self.graph, term == "c2p"
        name, use_bias = table_projections(self.config)["pos_key" if content_first else "pos_query"]
        projected = graph.reshape(
            self._project(name, relative.table, use_bias), (0, self.config.num_attention_heads, -1)
        )
        rows = graph.add("Transpose", projected, perm=(1, 2, 0) if content_first else (1, 0, 2))
        axis = 2 if content_first else 1
        rows = graph.add("Slice", rows, relative.start, relative.stop, graph.integers([axis]))
        left, right = (query, rows) if content_first else (rows, key)
        scores = graph.add("MatMul", left, right)  # c2p [B,N,T,R], p2c [B,N,R,T]
        return graph.wide(graph.add("GatherElements", scores, relative.index, axis=axis + 1))

    def _mix(self, name: str, x: str) -> str:
        """Adds the product of scores or weights with a matrix that mixes their heads, in float32."""
        graph, heads = self.graph, self.config.num_attention_heads
        matrix = graph.weight(name, np.asarray(self.params[name]["kernel"]).T, np.float32)
        mixed = graph.add("MatMul", matrix, graph.reshape(x, (0, heads, -1)))
        return graph.add("Reshape", mixed, graph.add("Shape", x))
