"""Builds the ONNX graph of a whole model and writes it to a file, with the weights in it or beside it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deberta_jax import storage
from deberta_jax.export.onnx.encoder import add_encoder
from deberta_jax.export.onnx.graph import Graph
from deberta_jax.export.onnx.heads import HeadContext, add_head, input_axes
from deberta_jax.export.onnx.library import library
from deberta_jax.models import Model, spec_of_model

LARGEST_FILE = 2**31 - 2**20
"""Bytes of weights that one file may hold: protobuf reads no message of 2 GiB. The rest is for the nodes."""


@dataclasses.dataclass(frozen=True)
class OnnxModel:
    """Holds the graph of a model.

    Attributes:
      proto: the ``onnx.ModelProto``, without initializers.
      initializers: the constants of the graph by name.
    """

    proto: Any
    initializers: Mapping[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        """Returns the size of the initializers in bytes."""
        return sum(array.nbytes for array in self.initializers.values())

    def write(self, file: Path, *, largest: int = LARGEST_FILE) -> None:
        """Writes the model.

        Args:
          file: path of the file.
          largest: if the weights take more bytes, they are written to a second file, ``model.onnx_data`` for
            ``model.onnx``.
        """
        numpy_helper, kinds = library("onnx.numpy_helper"), library("onnx").TensorProto
        proto = type(self.proto)()
        proto.CopyFrom(self.proto)
        if self.nbytes <= largest:
            tensors = (numpy_helper.from_array(array, name) for name, array in self.initializers.items())
            proto.graph.initializer.extend(tensors)
            storage.write_bytes(file, proto.SerializeToString())
            return
        data = file.with_name(f"{file.name}_data")
        dtype_of = library("onnx.helper").np_dtype_to_tensor_dtype
        with storage.writing(data) as stream:
            for name, array in self.initializers.items():
                tensor = proto.graph.initializer.add(name=name, dims=array.shape, data_type=dtype_of(array.dtype))
                if array.nbytes < 1024:  # shapes and indices, which checkers read, stand in the graph
                    tensor.raw_data = array.tobytes()
                    continue
                stream.write(b"\0" * (-stream.tell() % 4096))  # so that runtimes can map the file into memory
                tensor.data_location = kinds.EXTERNAL
                place = {"location": data.name, "offset": stream.tell(), "length": array.nbytes}
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
                stream.write(array.data.cast("B"))
        storage.write_bytes(file, proto.SerializeToString())


def build(
    model: Model, params: Mapping[str, Any], dtype: Any = np.float32, *, int8_embeddings: bool = False
) -> OnnxModel:
    """Builds the graph of a model.

    Args:
      model: a model whose head is in ``heads.HEAD_GRAPHS``.
      params: its parameters.
      dtype: float32 or float16: dtype of the weights and of the computation. Softmax, LayerNorm and the sum of the
        attention scores are float32 in any case, and so are the outputs.
      int8_embeddings: store the word embeddings as int8 with a scale for each row.
    """
    graph, config = Graph(dtype), model.config
    head, spec = spec_of_model(model)
    encoder = params if head == "encoder" else params["deberta"]
    axes = input_axes(head, config.type_vocab_size)
    tokens: dict[str, str] = {name: name for name in axes}
    if spec.model.reads_choices:  # each choice is a text of its own
        length = graph.size("input_ids", 2)
        shape = graph.add("Concat", graph.integers([-1]), length, axis=0)
        tokens = {name: graph.add("Reshape", name, shape) for name in axes}
    encoded = add_encoder(
        graph,
        config,
        encoder,
        input_ids=tokens["input_ids"],
        attention_mask=tokens["attention_mask"],
        token_type_ids=tokens.get("token_type_ids"),
        mask_decoder=head == "masked-lm" and config.mask_decoder,
        int8_embeddings=int8_embeddings,
    )
    outputs = add_head(head, HeadContext(graph, config, params, encoded, "input_ids"))
    names = {}
    for name, (value, sizes) in outputs.items():
        graph.nodes.append(library("onnx.helper").make_node("Identity", [value], [name], name=name))
        names[name] = sizes
    return OnnxModel(graph.model(axes, names), graph.initializers)
