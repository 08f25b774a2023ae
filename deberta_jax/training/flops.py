"""Counts the FLOPs of a step from the config, and knows the peak of common devices, for MFU."""

import jax

from deberta_jax.config import DebertaConfig

# Peak of one device for bfloat16 matmuls, in 1e12 FLOP/s, from the vendors' data sheets.
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


def forward_flops(config: DebertaConfig, token_slots: int, length: int) -> float:
    """Returns the FLOPs of the encoder's forward pass, padding included.

    Counted are the matmuls with weights, the content scores and the context, and each relative term as a matmul with
    the 2T-1 distances that it can have (at most the rows of the table). Embeddings, LayerNorms, softmax and heads are
    not counted; they are some per cent.

    Args:
      token_slots: tokens of the batch, padding included.
      length: tokens of a row.
    """
    c = config
    width, heads = c.hidden_size, c.num_attention_heads * c.head_size
    weights = 4 * width * heads + 2 * width * c.intermediate_size
    rows = min(2 * length - 1, 2 * c.relative_span)
    scores = 2 * length * heads + len(c.relative_terms) * rows * heads
    conv = c.conv_kernel_size * width * (width // c.conv_groups) if c.conv_kernel_size else 0
    return 2.0 * token_slots * (c.num_hidden_layers * (weights + scores) + conv)


def step_flops(config: DebertaConfig, token_slots: int, length: int) -> float:
    """Returns the FLOPs of a training step: three times the forward pass."""
    return 3.0 * forward_flops(config, token_slots, length)


def peak_flops(given: float) -> float | None:
    """Returns the peak FLOP/s of all devices together; None where it is not known.

    Args:
      given: the peak of one device in 1e12 FLOP/s; 0 looks the device up in a table.
    """
    kind = jax.devices()[0].device_kind
    known = [peak for name, peak in PEAK_TFLOPS.items() if kind == name or kind.startswith(f"{name} ")]
    peak = given or (known[0] if known else 0.0)
    return peak * 1e12 * jax.device_count() if peak else None
