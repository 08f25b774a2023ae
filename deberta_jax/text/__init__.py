"""Provides tokenizers and token masking. Imports no JAX, so data workers can import it cheaply."""

from deberta_jax.text.encoding import Encoding
from deberta_jax.text.loading import load_tokenizer
from deberta_jax.text.tokenizer import Tokenizer
from deberta_jax.text.training import train_tokenizer

__all__ = ["Encoding", "Tokenizer", "load_tokenizer", "train_tokenizer"]
