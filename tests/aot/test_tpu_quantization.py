"""Quantized models compiled for a TPU that is not there."""

import importlib.util
import re

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

import deberta_jax
from deberta_jax.sharding import make_mesh
from deberta_jax.weights.quantization import Quantization, quantized_shapes

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install 'deberta_jax[tpu]'"),
    # libtpu says on import that it found no TPU.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_a_program_for_a_tpu_has_no_dequantized_stack(scheme):
    mesh = make_mesh(devices=topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices)
    whole = NamedSharding(mesh, PartitionSpec())
    config = deberta_jax.PRESETS["deberta-v3-base"].replace(num_hidden_layers=6)
    model = deberta_jax.DebertaForSequenceClassification(config, dtype="bfloat16", attention="xla")
    shapes = quantized_shapes(model, Quantization(scheme=scheme, embeddings=True))
    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), shapes)
    ids = jax.ShapeDtypeStruct((8, 128), "int32", sharding=whole)
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda params, ids: model(params, ids).logits).lower(params, ids).compile()
    found = re.findall(r"(?:f32|bf16)\[([\d,]+)\]", compiled.as_text())
    arrays = {tuple(map(int, shape.split(","))) for shape in found}
    assert arrays
    assert not {shape for shape in arrays if shape[0] == 6 and np.prod(shape) >= 6 * 768 * 768}
    assert (128100, 768) not in arrays, "the word embeddings"
