"""Provides the losses of all tasks as pure functions: each gives the loss and the weight of every item.

``weighted_mean`` makes one number of both.
"""

from deberta_jax.ops.losses import (
    binary_cross_entropy,
    cross_entropy,
    mean_squared_error,
    replaced_token_loss,
    soft_cross_entropy,
    span_loss,
    weighted_mean,
)

__all__ = [
    "binary_cross_entropy",
    "cross_entropy",
    "mean_squared_error",
    "replaced_token_loss",
    "soft_cross_entropy",
    "span_loss",
    "weighted_mean",
]
