"""Exports models to formats that run without this package."""

from deberta_jax.export.onnx.exporting import OnnxExport, export_onnx

__all__ = ["OnnxExport", "export_onnx"]
