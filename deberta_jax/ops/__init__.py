"""Holds the mathematics of DeBERTa as pure functions of arrays: no Flax, no configuration objects."""
