"""Holds what the Pallas kernels for TPUs and GPUs share, and the implementation ``pallas`` that runs them."""
