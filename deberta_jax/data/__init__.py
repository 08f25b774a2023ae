"""Turns files into batches: tables, labels, token features, and the assignment of examples to batches."""

from deberta_jax.data.features import Features, choice_features, make_features, span_features, word_features
from deberta_jax.data.table import Table
from deberta_jax.data.tables import read_table

__all__ = [
    "Features",
    "Table",
    "choice_features",
    "make_features",
    "read_table",
    "span_features",
    "word_features",
]
