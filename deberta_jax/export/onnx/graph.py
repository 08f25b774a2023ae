"""Builds the graph of an ONNX model: its nodes, its initializers, and unique names for both."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deberta_jax.export.onnx.library import library

OPSET = 17
"""Version of the operators. It is the first with LayerNormalization, and old enough for runtimes in browsers."""

IR_VERSION = 8
"""Version of the file format that belongs to the opset."""


class Graph:
    """Collects nodes and initializers.

    A value is named by a string, as in ONNX. Methods that add a node return the name of its output.

    Attributes:
      dtype: dtype of the weights and of the computation, float32 or float16.
      initializers: the constants by name.
      nodes: the nodes in the order of computation.
    """

    def __init__(self, dtype: Any = np.float32):
        self.dtype = np.dtype(dtype)
        self.initializers: dict[str, np.ndarray] = {}
        self.nodes: list[Any] = []
        self._helper = library("onnx.helper")
        self._scope: list[str] = []
        self._counts: dict[str, int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Puts ``name`` before the names of all that is added in the block."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output and returns the name of the output."""
        name = self._unique(operator)
        self.nodes.append(self._helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str, array: Any, dtype: Any = None) -> str:
        """Adds a parameter, in the graph's dtype unless ``dtype`` is given. One name holds one array for good."""
        full = "/".join([*self._scope, name])
        if full not in self.initializers:
            with np.errstate(over="ignore"):  # infinity in float16 is found when the outputs are compared
                self.initializers[full] = np.ascontiguousarray(array, dtype or self.dtype)
        return full

    def integers(self, values: Any, dtype: Any = np.int64) -> str:
        """Returns a constant of integers; equal constants are stored once."""
        return self._constant(np.asarray(values, dtype))

    def number(self, value: float, dtype: Any = None) -> str:
        """Returns a scalar constant, in the graph's dtype unless ``dtype`` is given."""
        return self._constant(np.asarray(value, dtype or self.dtype))

    def _constant(self, array: np.ndarray) -> str:
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            self._constants[key] = name = f"constant_{len(self._constants)}"
            self.initializers[name] = array
        return self._constants[key]

    def _unique(self, operator: str) -> str:
        base = "/".join([*self._scope, operator])
        self._counts[base] = count = self._counts.get(base, -1) + 1
        return f"{base}_{count}" if count else base

    # Frequent nodes.

    def cast(self, x: str, dtype: Any) -> str:
        """Converts a value to a dtype of NumPy."""
        return self.add("Cast", x, to=self._helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def wide(self, x: str) -> str:
        """Converts a value of the graph's dtype to float32, where the graph has another one."""
        return x if self.dtype == np.float32 else self.cast(x, np.float32)

    def narrow(self, x: str) -> str:
        """Converts a float32 value to the graph's dtype, where that is another one."""
        return x if self.dtype == np.float32 else self.cast(x, self.dtype)

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """Reshapes a value; 0 keeps the size of that axis, -1 stands for the rest."""
        return self.add("Reshape", x, self.integers(shape))

    def unsqueeze(self, x: str, *axes: int) -> str:
        """Adds axes of size 1."""
        return self.add("Unsqueeze", x, self.integers(axes))

    def size(self, x: str, axis: int) -> str:
        """Returns the size of an axis: int64 [1]."""
        return self.add("Shape", x, start=axis, end=axis + 1)

    def model(self, inputs: Mapping[str, Sequence[str]], outputs: Mapping[str, Sequence[int | str]]) -> Any:
        """Returns an ``onnx.ModelProto`` of the graph, without its initializers.

        Args:
          inputs: names of the int64 inputs, with the names of their axes.
          outputs: names of the float32 outputs, with the names or sizes of their axes.
        """
        helper, kinds = self._helper, library("onnx").TensorProto
        graph = helper.make_graph(
            self.nodes,
            "deberta",
            [helper.make_tensor_value_info(name, kinds.INT64, axes) for name, axes in inputs.items()],
            [helper.make_tensor_value_info(name, kinds.FLOAT, axes) for name, axes in outputs.items()],
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="deberta_jax",
        )
