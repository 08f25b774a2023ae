"""The Pallas kernels for GPUs, written for Triton."""
