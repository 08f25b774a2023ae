"""Adds the layers, the convolution and the enhanced mask decoder to a graph."""

from typing import Any, NamedTuple

import jax
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.export.onnx.attention import SelfAttention
from deberta_jax.export.onnx.embeddings import Mask, WordTable, add_embeddings, add_mask, keep_tokens
from deberta_jax.export.onnx.graph import Graph
from deberta_jax.export.onnx.modules import Params, activation, layer_norm, linear
from deberta_jax.export.onnx.relative_position import RelativePositions, add_relative_positions


class Encoded(NamedTuple):
    """Holds the names of the values that heads read.

    Attributes:
      states: the last hidden states [B,T,D].
      mask: the values of the attention mask.
      words: the word embeddings.
    """

    states: str
    mask: Mask
    words: WordTable


def add_encoder(
    graph: Graph,
    config: DebertaConfig,
    params: Params,
    *,
    input_ids: str,
    attention_mask: str,
    token_type_ids: str | None,
    mask_decoder: bool,
    int8_embeddings: bool,
) -> Encoded:
    """Adds embeddings and all layers.

    Args:
      params: the parameters of the encoder.
      input_ids, attention_mask, token_type_ids: int64 [B,T].
      mask_decoder: the last layer is the enhanced mask decoder, as ``models.encoder.Encoder`` describes it.
      int8_embeddings: the word embeddings are quantized.
    """
    c = config
    mask = add_mask(graph, attention_mask)
    embeddings = params["embeddings"]
    words = WordTable(graph, embeddings["word_embeddings"]["embedding"], quantized=int8_embeddings)
    x, positions = add_embeddings(
        graph, c, embeddings, words, input_ids=input_ids, token_type_ids=token_type_ids, mask=mask
    )
    encoder = params["encoder"]
    with graph.scope("encoder"):
        conv = _add_convolution(graph, c, encoder["conv"], x, mask) if c.conv_kernel_size > 0 else None
        relative = add_relative_positions(graph, c, encoder, input_ids) if c.relative_terms else None
        last = c.num_hidden_layers - 1
        for layer in range(c.num_hidden_layers):
            stack = _Layer(graph, c, _layer_params(encoder["layers"], layer), layer)
            query = x
            if mask_decoder and layer == last:
                assert positions is not None
                query = stack.add(graph.add("Add", x, positions), x, mask, relative)
            x = stack.add(query, x, mask, relative)
            if conv is not None and layer == 0:
                merged = graph.add("Add", x, conv)
                merged = layer_norm(graph, "conv/LayerNorm", merged, encoder["conv"]["LayerNorm"], c.layer_norm_eps)
                x = keep_tokens(graph, mask, merged)
    return Encoded(x, mask, words)


def _layer_params(stack: Params, layer: int) -> Any:
    return jax.tree.map(lambda array: np.asarray(array[layer]), stack)


class _Layer:
    """Adds one layer; twice for the mask decoder, which applies the last one twice."""

    def __init__(self, graph: Graph, config: DebertaConfig, params: Params, layer: int):
        self.graph, self.config, self.params = graph, config, params
        self.name = f"layer_{layer}"
        self.attention = SelfAttention(graph, config, params["attention"]["self"], layer)

    def add(self, x: str, source: str, mask: Mask, relative: RelativePositions | None) -> str:
        """Adds attention and the feed-forward block, each followed by residual and LayerNorm."""
        c, graph, params = self.config, self.graph, self.params
        with graph.scope(self.name):
            with graph.scope("attention"):
                context = self.attention.add(x, source, mask, relative)
                x = self._residual("output", params["attention"]["output"], context, x)
            wide = linear(graph, "intermediate", x, params["intermediate"]["dense"], outputs=c.intermediate_size)
            return self._residual("output", params["output"], activation(graph, c.hidden_act, wide), x)

    def _residual(self, name: str, params: Params, x: str, residual: str) -> str:
        c, graph = self.config, self.graph
        y = linear(graph, name, x, params["dense"], outputs=c.hidden_size)
        added = graph.add("Add", y, residual)
        return layer_norm(graph, f"{name}/LayerNorm", added, params["LayerNorm"], c.layer_norm_eps)


def _add_convolution(graph: Graph, config: DebertaConfig, params: Params, x: str, mask: Mask) -> str:
    """Adds the convolution of the embeddings [B,T,D] and its activation."""
    kernel, bias = params["conv"]["kernel"], params["conv"]["bias"]
    half = config.conv_kernel_size // 2
    with graph.scope("conv"):
        weights = graph.weight("kernel", np.asarray(kernel).transpose(2, 1, 0)), graph.weight("bias", bias)
        columns = graph.add("Transpose", x, perm=(0, 2, 1))
        y = graph.add("Conv", columns, *weights, group=config.conv_groups, pads=(half, half))
        y = keep_tokens(graph, mask, graph.add("Transpose", y, perm=(0, 2, 1)))
        return activation(graph, config.conv_act, y)
