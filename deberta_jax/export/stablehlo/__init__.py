"""Writes compiled forms of models that JAX alone loads, for CPUs, GPUs and TPUs."""
