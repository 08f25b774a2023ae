"""Builds ONNX graphs of models from their own parameters, and checks them in ONNX Runtime."""
