"""Adds the smallest modules of a model to a graph: dense layers, LayerNorm and activations."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from deberta_jax.export.onnx.graph import Graph

Params = Mapping[str, Any]


def linear(graph: Graph, name: str, x: str, params: Params, *, outputs: int, scale: float = 1.0) -> str:
    """Adds ``x @ kernel + bias``; without a bias in the parameters only the product.

    Args:
      name: name of the layer in the file; the same layer may be added for several inputs.
      x: [..., D].
      params: ``kernel``, whose first axes are joined to D and its others to the outputs; and ``bias`` or not.
      outputs: the number F of outputs.
      scale: kernel and bias are multiplied by it.
    """
    kernel = _scaled(params["kernel"], scale).reshape(-1, outputs)
    y = graph.add("MatMul", x, graph.weight(f"{name}.kernel", kernel))
    if "bias" not in params:
        return y
    return graph.add("Add", y, graph.weight(f"{name}.bias", _scaled(params["bias"], scale).reshape(outputs)))


def _scaled(array: Any, scale: float) -> np.ndarray:
    array = np.asarray(array)
    return array if scale == 1.0 else np.asarray(array, np.float32) * np.float32(scale)


def layer_norm(graph: Graph, name: str, x: str, params: Params, epsilon: float) -> str:
    """Adds a LayerNorm over the last axis, computed in float32."""
    scale, bias = (graph.weight(f"{name}.{part}", params[part], np.float32) for part in ("scale", "bias"))
    return graph.narrow(graph.add("LayerNormalization", graph.wide(x), scale, bias, axis=-1, epsilon=epsilon))


def activation(graph: Graph, name: str, x: str) -> str:
    """Adds the activation with a name of ``ops.activations``, computed in the graph's dtype."""
    return ACTIVATIONS[name](graph, x)


def _one(operator: str, **attributes: Any) -> Callable[[Graph, str], str]:
    """Returns a function that adds one node."""
    return lambda graph, x: graph.add(operator, x, **attributes)


def _gelu(graph: Graph, x: str) -> str:
    # In these five nodes ONNX Runtime recognises GELU, and computes it in one pass.
    erf = graph.add("Erf", graph.add("Div", x, graph.number(math.sqrt(2.0))))
    product = graph.add("Mul", x, graph.add("Add", erf, graph.number(1.0)))
    return graph.add("Mul", product, graph.number(0.5))


def _tanh_gelu(graph: Graph, x: str) -> str:
    cube = graph.add("Mul", graph.add("Mul", x, x), x)
    inner = graph.add("Add", x, graph.add("Mul", cube, graph.number(0.044715)))
    tanh = graph.add("Tanh", graph.add("Mul", inner, graph.number(math.sqrt(2.0 / math.pi))))
    return graph.add("Mul", graph.add("Mul", x, graph.number(0.5)), graph.add("Add", tanh, graph.number(1.0)))


def _clip(graph: Graph, x: str, low: float, high: float) -> str:
    return graph.add("Clip", x, graph.number(low), graph.number(high))


def _laplace(graph: Graph, x: str) -> str:
    shifted = graph.add("Sub", x, graph.number(0.707107))
    erf = graph.add("Erf", graph.add("Div", shifted, graph.number(0.282095 * math.sqrt(2.0))))
    return graph.add("Mul", graph.add("Add", erf, graph.number(1.0)), graph.number(0.5))


def _mish(graph: Graph, x: str) -> str:
    return graph.add("Mul", x, graph.add("Tanh", graph.add("Softplus", x)))


def _quick_gelu(graph: Graph, x: str) -> str:
    return graph.add("Mul", x, graph.add("Sigmoid", graph.add("Mul", x, graph.number(1.702))))


def _squared_relu(graph: Graph, x: str) -> str:
    positive = graph.add("Relu", x)
    return graph.add("Mul", positive, positive)


def _silu(graph: Graph, x: str) -> str:
    return graph.add("Mul", x, graph.add("Sigmoid", x))


ACTIVATIONS: dict[str, Callable[[Graph, str], str]] = {
    "gelu": _gelu,
    "gelu_10": lambda graph, x: _clip(graph, _gelu(graph, x), -10.0, 10.0),
    "gelu_accurate": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_python": _gelu,
    "gelu_python_tanh": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "hardswish": _one("HardSwish"),
    "laplace": _laplace,
    "leaky_relu": _one("LeakyRelu", alpha=0.01),
    "linear": lambda graph, x: x,
    "mish": _mish,
    "quick_gelu": _quick_gelu,
    "relu": _one("Relu"),
    "relu2": _squared_relu,
    "relu6": lambda graph, x: _clip(graph, x, 0.0, 6.0),
    "sigmoid": _one("Sigmoid"),
    "silu": _silu,
    "sqrtsoftplus": lambda graph, x: graph.add("Sqrt", graph.add("Softplus", x)),
    "swish": _silu,
    "tanh": _one("Tanh"),
}
"""Adds each activation to a graph. The names are those of ``ops.activations``; a test compares the two tables."""
