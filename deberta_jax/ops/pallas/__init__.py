"""Attention bodies as hand-written kernels (Pallas), with the contract of every other body."""
