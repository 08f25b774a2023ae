"""Holds the implementation for CPUs, and the workarounds for XLA's CPU backend that attention needs."""
