"""Holds the Pallas kernels for GPUs, written for Mosaic GPU."""
