"""Holds the Pallas kernels for TPUs."""
