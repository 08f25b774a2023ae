"""Adds the heads to a graph. ``HEAD_GRAPHS`` lists how each head of ``models.HEADS`` is added."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from deberta_jax.config import DebertaConfig
from deberta_jax.export.onnx.encoder import Encoded
from deberta_jax.export.onnx.graph import Graph
from deberta_jax.export.onnx.modules import Params, activation, layer_norm, linear
from deberta_jax.models import HEADS

Output = tuple[str, tuple[int | str, ...]]
"""A value in float32, and the names or sizes of its axes."""

BATCH, CHOICES, LENGTH = "batch_size", "num_choices", "sequence_length"
TOKENS = (BATCH, LENGTH)


class HeadContext(NamedTuple):
    """Holds what a head is added to.

    Attributes:
      graph, config: the graph and the architecture.
      params: the parameters of the whole model.
      encoded: what the encoder gives.
      input_ids: the input of the graph, [B,T], or [B,C,T] for multiple choice.
    """

    graph: Graph
    config: DebertaConfig
    params: Params
    encoded: Encoded
    input_ids: str


def _encoder(head: HeadContext) -> dict[str, Output]:
    return {"last_hidden_state": (head.encoded.states, (*TOKENS, head.config.hidden_size))}


def _masked_lm(head: HeadContext) -> dict[str, Output]:
    graph, c = head.graph, head.config
    params = head.params["cls"]["predictions"] if c.legacy else head.params["lm_predictions"]["lm_head"]
    transform = params["transform"] if c.legacy else params
    x = linear(graph, "transform", head.encoded.states, transform["dense"], outputs=c.embedding_width)
    x = activation(graph, c.hidden_act, x)
    x = layer_norm(graph, "transform/LayerNorm", x, transform["LayerNorm"], c.layer_norm_eps)
    bias = graph.weight("bias", params["bias"])
    if not c.tie_word_embeddings:
        logits = graph.add("Add", linear(graph, "decoder", x, params["decoder"], outputs=c.vocab_size), bias)
    else:
        # Gemm reads the table as it is; for MatMul it would have to be transposed, which is a second copy of it.
        rows = graph.add("Gemm", graph.reshape(x, (-1, c.embedding_width)), head.encoded.words.whole(), bias, transB=1)
        shape = graph.add("Concat", graph.add("Shape", head.input_ids), graph.integers([c.vocab_size]), axis=0)
        logits = graph.add("Reshape", rows, shape)
    return {"logits": (logits, (*TOKENS, c.vocab_size))}


def _pooled(head: HeadContext, labels: int) -> str:
    """Adds pooler and classifier of the first real token: [B,C]."""
    graph, c = head.graph, head.config
    x = _first_tokens(head)
    x = linear(graph, "pooler", x, head.params["pooler"]["dense"], outputs=c.hidden_size)
    x = activation(graph, c.pooler_hidden_act, x)
    return linear(graph, "classifier", x, head.params["classifier"], outputs=labels)


def _first_tokens(head: HeadContext) -> str:
    """Adds the selection of the vectors of the first real tokens: [B,D]."""
    first = head.graph.unsqueeze(head.encoded.mask.first, 1)
    return head.graph.add("GatherND", head.encoded.states, first, batch_dims=1)


def _sequence_classification(head: HeadContext) -> dict[str, Output]:
    labels = head.config.num_labels
    return {"logits": (_pooled(head, labels), (BATCH, labels))}


def _multiple_choice(head: HeadContext) -> dict[str, Output]:
    shape = head.graph.add("Shape", head.input_ids, start=0, end=2)
    return {"logits": (head.graph.add("Reshape", _pooled(head, 1), shape), (BATCH, CHOICES))}


def _token_classification(head: HeadContext) -> dict[str, Output]:
    graph, c, x = head.graph, head.config, head.encoded.states
    if c.classifier_proj:
        x = activation(graph, "gelu", linear(graph, "proj", x, head.params["proj"], outputs=c.hidden_size))
    logits = linear(graph, "classifier", x, head.params["classifier"], outputs=c.num_labels)
    return {"logits": (logits, (*TOKENS, c.num_labels))}


def _question_answering(head: HeadContext) -> dict[str, Output]:
    graph = head.graph
    logits = linear(graph, "qa_outputs", head.encoded.states, head.params["qa_outputs"], outputs=2)
    names = ("start_logits", "end_logits")
    return {name: (graph.add("Gather", logits, graph.integers(i), axis=2), TOKENS) for i, name in enumerate(names)}


def _replaced_token_detection(head: HeadContext) -> dict[str, Output]:
    graph, c, params = head.graph, head.config, head.params["mask_predictions"]
    x = graph.add("Add", head.encoded.states, graph.unsqueeze(_first_tokens(head), 1))
    x = layer_norm(graph, "LayerNorm", x, params["LayerNorm"], c.layer_norm_eps)
    x = activation(graph, c.hidden_act, linear(graph, "dense", x, params["dense"], outputs=c.hidden_size))
    logits = linear(graph, "classifier", x, params["classifier"], outputs=1)
    return {"logits": (graph.add("Squeeze", logits, graph.integers([2])), TOKENS)}


HEAD_GRAPHS: dict[str, Callable[[HeadContext], dict[str, Output]]] = {
    "encoder": _encoder,
    "masked-lm": _masked_lm,
    "sequence-classification": _sequence_classification,
    "token-classification": _token_classification,
    "question-answering": _question_answering,
    "multiple-choice": _multiple_choice,
    "replaced-token-detection": _replaced_token_detection,
}
"""Adds each head to a graph, and returns its outputs by name."""


def add_head(name: str, head: HeadContext) -> dict[str, Output]:
    """Adds a head, and gives its outputs their names in float32."""
    graph, outputs = head.graph, {}
    with graph.scope("head"):
        for output, (value, axes) in HEAD_GRAPHS[name](head).items():
            outputs[output] = graph.wide(value), axes
    return outputs


def input_axes(head: str, type_vocab_size: int) -> dict[str, Sequence[str]]:
    """Returns the inputs of the graph with the names of their axes, as Optimum names them."""
    axes = (BATCH, CHOICES, LENGTH) if HEADS[head].model.reads_choices else TOKENS
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if type_vocab_size > 0 else [])]
    return dict.fromkeys(names, axes)
