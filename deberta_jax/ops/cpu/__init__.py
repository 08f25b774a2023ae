"""Holds what exists only because of XLA's CPU backend."""
