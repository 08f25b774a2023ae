"""Loads, converts, saves and compares checkpoints of all published formats, without PyTorch."""

from deberta_jax.weights.checking import Check, find_incomplete
from deberta_jax.weights.conversion import convert
from deberta_jax.weights.inspection import inspect
from deberta_jax.weights.load import from_pretrained, load
from deberta_jax.weights.opening import load_config, tokenizer_directory
from deberta_jax.weights.quantization import Quantization
from deberta_jax.weights.quantizing import quantize_model
from deberta_jax.weights.report import Report
from deberta_jax.weights.resize import resize_vocabulary
from deberta_jax.weights.save import save_pretrained
from deberta_jax.weights.verification import verify

__all__ = [
    "Check",
    "Quantization",
    "Report",
    "convert",
    "from_pretrained",
    "inspect",
    "load",
    "load_config",
    "quantize_model",
    "resize_vocabulary",
    "save_pretrained",
    "verify",
]
