"""Exports models to formats that run without this package."""

from deberta_jax.export.onnx.exporting import OnnxExport, export_onnx
from deberta_jax.export.stablehlo.exporting import StableHloExport, export_stablehlo

__all__ = ["OnnxExport", "StableHloExport", "export_onnx", "export_stablehlo"]
