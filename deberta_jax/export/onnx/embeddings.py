"""Adds the embeddings to a graph, and what the rest of the model needs of the attention mask."""

from typing import Any, NamedTuple

import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.export.onnx.graph import Graph
from deberta_jax.export.onnx.modules import Params, layer_norm, linear

MASKED_SCORE = -1e30
"""Is added in float32 to the scores of keys that are padding: what it leaves of them after the softmax is 0."""


class Mask(NamedTuple):
    """Holds the names of values that derive from ``attention_mask`` [B,T].

    Attributes:
      tokens: bool [B,T,1], True for real tokens.
      factors: 1 for real tokens and 0 for padding, in the graph's dtype [B,T,1].
      scores: float32 [B,1,1,T], 0 for real tokens and ``MASKED_SCORE`` for padding.
      first: the position of the first real token, int64 [B].
    """

    tokens: str
    factors: str
    scores: str
    first: str


def add_mask(graph: Graph, attention_mask: str) -> Mask:
    """Adds the values that derive from the attention mask, which is nonzero for real tokens."""
    with graph.scope("mask"):
        real = graph.cast(attention_mask, np.bool_)
        tokens = graph.unsqueeze(real, 2)
        zero, masked = graph.number(0.0, np.float32), graph.number(MASKED_SCORE, np.float32)
        scores = graph.unsqueeze(graph.add("Where", real, zero, masked), 1, 2)
        first = graph.add("ArgMax", graph.cast(real, np.int32), axis=1, keepdims=0)
        return Mask(tokens, graph.cast(tokens, graph.dtype), scores, first)


def keep_tokens(graph: Graph, mask: Mask, x: str) -> str:
    """Adds what sets the vectors [B,T,D] of padding to zero."""
    return graph.add("Where", mask.tokens, x, graph.number(0.0))


class WordTable:
    """Adds the word embeddings [V,E] to a graph, in its dtype or quantized.

    Quantized, each row is int8 with a scale of its own, since one rare word with a large vector would make the step of
    all others coarse. ONNX Runtime's own quantization has one scale for the whole table.
    """

    def __init__(self, graph: Graph, table: Any, *, quantized: bool):
        self.graph = graph
        self.scale = None
        if not quantized:
            self.rows = graph.weight("word_embeddings", table)
            return
        values = np.asarray(table, np.float32)
        largest = np.abs(values).max(axis=1, keepdims=True)
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        self.rows = graph.weight("word_embeddings", np.rint(values / scale), np.int8)
        self.scale = graph.weight("word_embeddings.scale", scale)

    def lookup(self, ids: str) -> str:
        """Adds the selection of the rows of ``ids``."""
        return self._values(*(self.graph.add("Gather", part, ids) for part in self._parts()))

    def whole(self) -> str:
        """Returns the whole table in the graph's dtype, for a tied decoder."""
        return self._values(*self._parts())

    def _parts(self) -> tuple[str, ...]:
        return (self.rows,) if self.scale is None else (self.rows, self.scale)

    def _values(self, rows: str, scale: str | None = None) -> str:
        return rows if scale is None else self.graph.add("Mul", self.graph.cast(rows, self.graph.dtype), scale)


def add_embeddings(
    graph: Graph,
    config: DebertaConfig,
    params: Params,
    words: WordTable,
    *,
    input_ids: str,
    token_type_ids: str | None,
    mask: Mask,
) -> tuple[str, str | None]:
    """Adds the sum of the embeddings, projection, LayerNorm and mask.

    Args:
      params: the parameters of the encoder's ``embeddings``.
      words: the word embeddings.
      input_ids, token_type_ids: int64 [B,T]; the second one where the model has token types.
      mask: of the tokens.

    Returns:
      The embeddings [B,T,D]; and the absolute position embeddings [T,E], None for models without them.
    """
    c = config
    with graph.scope("embeddings"):
        x = words.lookup(input_ids)
        positions = None
        if c.has_position_table:
            zero, one = graph.integers(0), graph.integers(1)
            length = graph.reshape(graph.size(input_ids, 1), ())
            rows = graph.weight("position_embeddings", params["position_embeddings"]["embedding"])
            positions = graph.add("Gather", rows, graph.add("Range", zero, length, one))
            if c.position_biased_input:
                x = graph.add("Add", x, positions)
        if token_type_ids is not None:
            rows = graph.weight("token_type_embeddings", params["token_type_embeddings"]["embedding"])
            x = graph.add("Add", x, graph.add("Gather", rows, token_type_ids))
        if c.embedding_width != c.hidden_size:
            x = linear(graph, "embed_proj", x, params["embed_proj"], outputs=c.hidden_size)
        x = layer_norm(graph, "LayerNorm", x, params["LayerNorm"], c.layer_norm_eps)
        return keep_tokens(graph, mask, x), positions
