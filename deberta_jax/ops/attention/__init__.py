"""Disentangled attention: one entry, ``disentangled_attention``, and the implementations that it chooses from."""

from deberta_jax.ops.attention.entry import (
    BODIES,
    WHOLE,
    choose_body,
    disentangled_attention,
    expected_body,
)

__all__ = ["BODIES", "WHOLE", "choose_body", "disentangled_attention", "expected_body"]
