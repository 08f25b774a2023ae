"""Computes disentangled attention: one entry, ``disentangled_attention``, and several implementations of it.

Where to look:
  entry.py: the entry, and how ``auto`` chooses an implementation.
  implementations.py: the names of all implementations, and ``register_attention`` for others.
  inputs.py: the arguments that every implementation receives.
  reference.py: the definition, by gather. Content-to-position and position-to-content scores are computed there.
  xla.py: the same by matrix products and a relative shift (``relative_shift.py``), without a gather.
  cpu/blocked_attention.py: block by block, for CPUs.
  pallas/kernel_attention.py: the kernels of ``tpu/`` and ``gpu/`` behind one function.
  relative_position.py, masks.py, dropout.py: what all implementations share.
"""

from deberta_jax.ops.attention.entry import (
    check_name,
    choose_implementation,
    disentangled_attention,
    expected_implementation,
)
from deberta_jax.ops.attention.implementations import IMPLEMENTATIONS, WHOLE_SCORES, register_attention
from deberta_jax.ops.attention.inputs import AttentionInputs
from deberta_jax.ops.attention.reference import attend_with_scores

__all__ = [
    "IMPLEMENTATIONS",
    "WHOLE_SCORES",
    "AttentionInputs",
    "attend_with_scores",
    "check_name",
    "choose_implementation",
    "disentangled_attention",
    "expected_implementation",
    "register_attention",
]
