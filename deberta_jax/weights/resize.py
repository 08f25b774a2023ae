"""Changes the size of the vocabulary: of the word embeddings and of everything that has one entry per word."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.ops.quantization import is_compressed
from deberta_jax.weights.names import ENCODER


def resize_vocabulary(
    config: DebertaConfig, params: Mapping[str, Any], n: int, key: jax.Array
) -> tuple[DebertaConfig, dict[str, Any]]:
    """Returns the config and parameters of a model with a vocabulary of ``n`` words.

    The word embeddings [V,E], the bias [V] of a masked-LM head and an untied decoder [E,V] are resized; all other
    arrays are shared with ``params``. New rows are drawn from Normal(0, initializer_range), new biases are zero; a
    smaller vocabulary loses its last rows. (transformers resizes the wrong layer of its non-legacy head.)

    Args:
      config: the architecture.
      params: the parameters of a model with any head, or of a bare encoder.
      n: the new size V.
      key: random key for the new rows.

    Raises:
      InputError: ``n`` is less than 1, or does not include the padding token; or the word embeddings are quantized.
    """
    if n <= config.pad_token_id or n < 1:
        raise InputError(f"n={n}: a vocabulary keeps at least the rows up to the padding token {config.pad_token_id}")
    encoder = params.get(ENCODER, params)
    word_embeddings = encoder["embeddings"]["word_embeddings"]["embedding"]
    if is_compressed(word_embeddings):
        raise InputError("the word embeddings are quantized; load the model with quantization='none' to resize them")
    fresh, fresh_decoder = jax.random.split(key)

    def resized(old: jax.Array, axis: int, draw: jax.Array | None) -> jax.Array:
        if n <= old.shape[axis]:
            return jnp.asarray(jax.lax.slice_in_dim(old, 0, n, axis=axis))
        shape = (*old.shape[:axis], n - old.shape[axis], *old.shape[axis + 1 :])
        if draw is None:
            new = jnp.zeros(shape, old.dtype)
        else:
            new = (config.initializer_range * jax.random.normal(draw, shape)).astype(old.dtype)
        return jnp.concatenate([jnp.asarray(old), new], axis)

    table = {"embedding": resized(word_embeddings, 0, fresh)}
    encoder = {**encoder, "embeddings": {**encoder["embeddings"], "word_embeddings": table}}
    out: dict[str, Any] = {**params, ENCODER: encoder} if ENCODER in params else encoder
    for outer, inner in (("cls", "predictions"), ("lm_predictions", "lm_head")):
        if outer in params:
            head = dict(params[outer][inner])
            head["bias"] = resized(head["bias"], 0, None)
            if "decoder" in head:
                head["decoder"] = {"kernel": resized(head["decoder"]["kernel"], 1, fresh_decoder)}
            out[outer] = {inner: head}
    return dataclasses.replace(config, vocab_size=n), out
