"""The mathematics of DeBERTa as pure functions of arrays: no flax, no configuration objects."""
