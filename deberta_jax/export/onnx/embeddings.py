"""Adds the embeddings to a graph, and what the rest of the model needs of the attention mask."""

from typing import NamedTuple

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


def word_table(graph: Graph, params: Params) -> str:
    """Returns the initializer of the word embeddings [V,E], which a tied decoder reads too."""
    return graph.weight("word_embeddings", params["embeddings"]["word_embeddings"]["embedding"])


def add_embeddings(
    graph: Graph, config: DebertaConfig, params: Params, input_ids: str, token_type_ids: str | None, mask: Mask
) -> tuple[str, str | None]:
    """Adds the sum of the embeddings, projection, LayerNorm and mask.

    Args:
      params: the parameters of the encoder.
      input_ids, token_type_ids: int64 [B,T]; the second one where the model has token types.
      mask: of the tokens.

    Returns:
      The embeddings [B,T,D]; and the absolute position embeddings [T,E], None for models without them.
    """
    c, table = config, params["embeddings"]
    words = word_table(graph, params)
    with graph.scope("embeddings"):
        x = graph.add("Gather", words, input_ids)
        positions = None
        if c.has_position_table:
            zero, one = graph.integers(0), graph.integers(1)
            length = graph.reshape(graph.size(input_ids, 1), ())
            rows = graph.weight("position_embeddings", table["position_embeddings"]["embedding"])
            positions = graph.add("Gather", rows, graph.add("Range", zero, length, one))
            if c.position_biased_input:
                x = graph.add("Add", x, positions)
        if token_type_ids is not None:
            rows = graph.weight("token_type_embeddings", table["token_type_embeddings"]["embedding"])
            x = graph.add("Add", x, graph.add("Gather", rows, token_type_ids))
        if c.embedding_width != c.hidden_size:
            x = linear(graph, "embed_proj", x, table["embed_proj"], outputs=c.hidden_size)
        x = layer_norm(graph, "LayerNorm", x, table["LayerNorm"], c.layer_norm_eps)
        return keep_tokens(graph, mask, x), positions
