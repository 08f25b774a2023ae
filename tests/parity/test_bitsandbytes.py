"""Quantized models against bitsandbytes: the same codes and scales, and each reads what the other writes."""

import bitsandbytes.functional as bnb
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig

from deberta_jax import Quantization, from_pretrained, quantize_model
from deberta_jax.ops.quantization import dense_values, is_compressed
from deberta_jax.ops.quantized_matrix import nested_levels, quantize, quantize_scales
from deberta_jax.weights import convert
from tests.parity.networks import network

pytestmark = pytest.mark.parity

HEAD = "sequence-classification"
SIZES = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 192, "vocab_size": 64}
IDS = np.arange(24).reshape(2, 12)
SKIPPED = ["classifier"]
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": SKIPPED}
SETTINGS = {
    "nf4": NF4,
    "nf4 double": {**NF4, "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True, "llm_int8_skip_modules": SKIPPED},
    "fp4": {"load_in_4bit": True},  # transformers' default; it quantizes the classifier too
}


@pytest.mark.parametrize("block", [64, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(256, 256), (1, 512), (384, 768)])
def test_nf4_of_random_matrices(shape, dtype, block):
    seed = torch.Generator().manual_seed(shape[0] + block)
    values = (torch.randn(shape, generator=seed) * 0.02).to(dtype)
    codes, state = bnb.quantize_4bit(values, blocksize=block, quant_type="nf4")
    ours = quantize(values.float().numpy(), "nf4", block=block)
    np.testing.assert_array_equal(ours.codes, codes.numpy().reshape(-1))
    np.testing.assert_array_equal(ours.scales, state.absmax.numpy())
    _, nested = bnb.quantize_4bit(values, blocksize=block, quant_type="nf4", compress_statistics=True)
    double = quantize(values.float().numpy(), "nf4", block=block, double_quantization=True)
    np.testing.assert_array_equal(double.codes, ours.codes)
    # torch's mean depends on the order in which the processor adds; given its mean, all is equal.
    np.testing.assert_allclose(double.offset, nested.offset.item(), rtol=1e-6)
    scales, nested_scales = quantize_scales(ours.scales, np.float32(nested.offset.item()))
    np.testing.assert_array_equal(scales, nested.absmax.numpy())
    np.testing.assert_array_equal(nested_scales, nested.state2.absmax.numpy())


@pytest.mark.parametrize("shape", [(256, 256), (3072, 768)])
def test_int8_of_random_matrices(shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.02
    codes, scales, _ = bnb.int8_vectorwise_quant(values.clone())
    ours = quantize(values.numpy(), "int8")
    np.testing.assert_array_equal(ours.codes, codes.numpy())
    np.testing.assert_array_equal(ours.scales, scales.numpy())


def test_levels_of_double_quantization():
    np.testing.assert_array_equal(nested_levels(), bnb.create_dynamic_map().numpy())


def small(generation: str):
    """A network of transformers with weights that float16 holds: bitsandbytes rounds to it before int8."""
    net = network(generation, HEAD, torch.float32, **SIZES).eval()
    with torch.no_grad():
        for value in net.parameters():
            value.copy_((value * 0.05).half().float())
    return net


def quantized_by_transformers(net, directory, name):
    """Writes the network, and a copy that transformers quantizes; returns the copy."""
    net.save_pretrained(directory / "float")
    settings = BitsAndBytesConfig(**SETTINGS[name])
    theirs = type(net).from_pretrained(
        directory / "float", quantization_config=settings, device_map="cpu", dtype=torch.float32
    )
    theirs.save_pretrained(directory / "theirs")
    return theirs.eval()


def theirs_dequantized(module) -> np.ndarray:
    weight = module.weight
    if hasattr(weight, "quant_state") and weight.quant_state is not None:
        return bnb.dequantize_4bit(weight.data, weight.quant_state).float().numpy()
    if weight.dtype == torch.int8:
        return bnb.int8_vectorwise_dequant(weight.data, weight.SCB).numpy()
    return weight.detach().numpy()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("generation", ["v1", "v3", "xl"])
def test_what_bitsandbytes_wrote_is_read_bit_by_bit(generation, name, tmp_path):
    net = quantized_by_transformers(small(generation), tmp_path, name)
    matrices = {
        module: theirs_dequantized(layer)
        for module, layer in net.named_modules()
        if type(layer).__name__ != "Linear" and "Linear" in type(layer).__name__
    }
    assert len(matrices) > 10
    convert(tmp_path / "theirs", tmp_path / "plain", to="hf")
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    # Of int8 the order of two products differs.
    tolerance = 3e-7 if name == "int8" else 0
    for module, values in matrices.items():
        np.testing.assert_allclose(plain[f"{module}.weight"], values, rtol=tolerance, err_msg=module)
    params = from_pretrained(tmp_path / "theirs", HEAD)[1]
    assert sum(map(is_compressed, jax.tree.leaves(params, is_leaf=is_compressed))) > 5
    dense = jax.tree.map(dense_values, params, is_leaf=is_compressed)
    expected = from_pretrained(tmp_path / "plain", HEAD)[1]
    jax.tree.map(np.testing.assert_array_equal, dense, expected)


@pytest.mark.parametrize("name", ["nf4", "nf4 double", "int8"])
@pytest.mark.parametrize("generation", ["v1", "v3"])
def test_transformers_loads_what_is_written_here(generation, name, tmp_path):
    theirs = quantized_by_transformers(small(generation), tmp_path, name)
    scheme, _, double = name.partition(" ")
    quantize_model(tmp_path / "float", tmp_path / "ours", Quantization(scheme=scheme, double=bool(double)))
    again, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True, device_map="cpu")
    assert not any(report.values()), report
    mine, expected = again.state_dict(), theirs.state_dict()
    assert mine.keys() == expected.keys()
    for key, value in expected.items():
        if "quant_state" in key or "nested" in key or (double and key.endswith("absmax")):
            continue  # the mean of the scales, and JSON text
        assert torch.equal(mine[key], value), key
    model, params = from_pretrained(tmp_path / "ours", HEAD)
    with torch.no_grad():
        logits = again.eval()(torch.tensor(IDS), attention_mask=torch.ones(IDS.shape)).logits.numpy()
    # bitsandbytes computes with bfloat16 (4 bits) or quantized (8 bits) inputs of the products.
    ours = np.asarray(jax.jit(lambda params: model(params, jnp.asarray(IDS)).logits)(params))
    np.testing.assert_allclose(ours, logits, atol=0.03 * np.abs(logits).max())
