"""Quantizes the matrix products of an ONNX file to 8 bits, by ONNX Runtime's dynamic quantization."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from deberta_jax.export.onnx.library import library


def quantize(source: Path, target: Path, *, external: bool) -> None:
    """Writes a file whose products with weights are computed in 8 bits.

    Weights have a scale for each output. Seven bits of them are used: on processors without 8-bit dot products sums of
    two products of full range would not fit in 16 bits. Activations get their scale while the model runs.

    Args:
      source: the file in float32.
      target: the new file.
      external: write the weights to a file of their own.
    """
    tools = library("onnxruntime.quantization")
    with _without_advice():
        tools.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=tools.QuantType.QInt8,
            use_external_data_format=external,
        )


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Suppresses messages to the root logger, to which ONNX Runtime writes advice that does not apply here."""
    logger, drop = logging.getLogger(), lambda record: False
    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)
