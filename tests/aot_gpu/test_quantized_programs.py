"""The forward pass of a quantized model, compiled for a GPU that is not there."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

import deberta_jax
from deberta_jax.planning.child import devices
from deberta_jax.planning.request import make_request
from deberta_jax.planning.targets import target_of
from deberta_jax.training.experiment import RunOptions
from tests.aot_gpu.needs import GPU_COMPILER
from tests.made import TINY, saved_model

pytestmark = GPU_COMPILER
LAYERS, WIDTH, INNER = 5, 256, 320
CONFIG = TINY.replace(hidden_size=WIDTH, num_attention_heads=4, intermediate_size=INNER, num_hidden_layers=LAYERS)


def gpu():
    request = make_request(
        "finetune", CONFIG, target_of("h100:1"), batch_size=4, length=48, dtype="bfloat16", runtime=RunOptions()
    )
    return devices(request)[0]


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_the_compiled_program_never_has_a_dequantized_stack(tmp_path, scheme):
    source = saved_model(tmp_path / "m", deberta_jax.DebertaForSequenceClassification(CONFIG))
    options = {"dtype": jnp.bfloat16, "attention": "xla", "quantization": scheme}
    model, params = deberta_jax.from_pretrained(source, "sequence-classification", **options)
    sharding = SingleDeviceSharding(gpu())
    abstract = lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)
    ids = jax.ShapeDtypeStruct((4, 48), jnp.int32, sharding=sharding)
    run = jax.jit(lambda params, ids: model.apply({"params": params}, ids).logits)
    compiled = run.trace(jax.tree.map(abstract, params), ids).lower(lowering_platforms=("cuda",)).compile()
    found = re.findall(r"(?:f32|bf16)\[([\d,]+)\]", compiled.as_text())
    sizes = {int(np.prod([int(size) for size in shape.split(",")])) for shape in found}
    assert WIDTH * INNER in sizes, "one layer is dequantized for its matrix product"
    stacks = {LAYERS * WIDTH * WIDTH, LAYERS * WIDTH * INNER}
    assert not sizes & stacks, "no array holds all layers of a weight in floating point"
