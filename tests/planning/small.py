"""A small model that is planned in moments."""

import dataclasses

from deberta_jax.presets import PRESETS

CONFIG = dataclasses.replace(
    PRESETS["deberta-v3-base"],
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    vocab_size=512,
)
