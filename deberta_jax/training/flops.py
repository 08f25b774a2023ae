"""Arithmetic of a step, counted by hand, and what share of the devices' peak it is."""

import jax

from deberta_jax.config import DebertaConfig

# Peak of bfloat16 products of one device, in 1e12 operations a second, from the makers' data sheets.
PEAK_TFLOPS = {
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    "NVIDIA A100": 312.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H200": 989.0,
}


def forward_flops(config: DebertaConfig, places: int, length: int) -> float:
    """Multiplications and additions of the encoder on ``places`` tokens in rows of ``length``, padding included.

    Products with weights, the content scores and context, and each relative term as a product with the 2T-1 distances
    it can have (at most the table's rows). Embeddings, LayerNorms, softmax and heads are left out: some per cent.
    """
    c = config
    width, heads = c.hidden_size, c.num_attention_heads * c.head_size
    weights = 4 * width * heads + 2 * width * c.intermediate_size
    rows = min(2 * length - 1, 2 * c.relative_span)
    scores = 2 * length * heads + len(c.relative_terms) * rows * heads
    conv = c.conv_kernel_size * width * (width // c.conv_groups) if c.conv_kernel_size else 0
    return 2.0 * places * (c.num_hidden_layers * (weights + scores) + conv)


def step_flops(config: DebertaConfig, places: int, length: int) -> float:
    """Forward and backward: three times the forward."""
    return 3.0 * forward_flops(config, places, length)


def peak_flops(given: float) -> float | None:
    """Of all devices together, a second; None where the device is not known and no figure is given."""
    kind = jax.devices()[0].device_kind
    known = [peak for name, peak in PEAK_TFLOPS.items() if kind == name or kind.startswith(f"{name} ")]
    peak = given or (known[0] if known else 0.0)
    return peak * 1e12 * jax.device_count() if peak else None
