"""Computes disentangled attention by one of several implementations, and chooses one for ``auto``."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.errors import InputError, did_you_mean, shown
from deberta_jax.ops.attention.dropout import MAX_LENGTH
from deberta_jax.ops.attention.implementations import BUILT_IN, IMPLEMENTATIONS, check_result, split_result
from deberta_jax.ops.attention.inputs import AttentionInputs
from deberta_jax.ops.attention.masks import normalize_masks
from deberta_jax.ops.attention.pallas.platforms import KERNEL_PLATFORMS
from deberta_jax.ops.attention.relative_position import pairwise_index
from deberta_jax.ops.attention.relative_shift import bias_by_distance

_log = logging.getLogger(__name__)


def disentangled_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T N H"],
    value: Float[Array, "B T N H"],
    pos_key: Float[Array, "R N H"] | None,
    pos_query: Float[Array, "R N H"] | None,
    relative_index: Int[np.ndarray, " U"],
    *,
    scale: float,
    attention_mask: Bool[Array, "B T"] | Bool[Array, "B T T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    mix_scores: Float[Array, "N N"] | None = None,
    mix_weights: Float[Array, "N N"] | None = None,
    attention_bias: Float[Array, "..."] | None = None,
    score_modifier: Callable[..., jax.Array] | None = None,
    return_weights: bool = False,
    implementation: str = "auto",
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T T"] | None]:
    """Computes attention with content-to-position and position-to-content terms (He et al. 2021, section 3.1).

    Args:
      query, key, value: one dtype; products accumulate in float32, and scores and softmax are float32.
      pos_key: projected relative table for the content-to-position term; None leaves the term out.
      pos_query: the same for the position-to-content term.
      relative_index: table row of each distance from -(T-1) to T-1, int32 [2T-1], a constant of the program.
      scale: factor of the sum of the terms; 1/sqrt(H * (1 + number of position terms)).
      attention_mask: [B,T] True for real tokens, or [B,T,T] True where query t may attend to key s.
      segment_ids: [B,T] text of each token in a packed row, 0 for padding; tokens attend within their text only.
      dropout_rate: probability that an attention weight is dropped.
      dropout_key: None turns dropout off.
      mix_scores, mix_weights: v1's talking heads: maps across heads before the softmax and after the dropout.
      attention_bias: float [N,T,T] or [B,N,T,T], or [N,2T-1] with a bias for each distance, in the order of
        ``relative_index``. It is added to the scaled scores, before the talking heads.
      score_modifier: ``(scores [B,N,T,T], query_index [1,1,T,1], key_index [1,1,1,T]) -> scores``, applied after the
        bias. Scores are float32, indices int32.
      return_weights: also return the attention weights.
      implementation: ``auto``, ``reference`` (by gather: slow, the definition), ``xla``, ``blocked``, or ``pallas``
        (TPUs and GPUs).

    Returns:
      The context [B,T,N,H] in the dtype of ``value``, zero for queries that may attend to nothing; and the attention
      weights before dropout, float32 [B,N,T,T], or None.

    Raises:
      InputError: an unknown implementation, or one that cannot serve the request; an ``attention_bias`` of another
        shape; dropout in rows of more than 65536 tokens.
      ValueError: ``relative_index`` of another length than 2T-1.
    """
    _check_length(query.shape[1], relative_index, drops=dropout_key is not None and dropout_rate > 0)
    changes_scores = (mix_scores, mix_weights, attention_bias, score_modifier)
    needs_scores = return_weights or any(change is not None for change in changes_scores)
    name = choose_implementation(implementation, query.dtype, whole_scores=needs_scores)
    segment_ids, attention_mask = normalize_masks(attention_mask, segment_ids)
    if attention_bias is not None:
        attention_bias = _whole_bias(attention_bias, query.shape, gather=name == "reference")
    inputs = AttentionInputs(
        query=query,
        key=key,
        value=value,
        pos_key=pos_key,
        pos_query=pos_query,
        relative_index=relative_index,
        scale=scale,
        segment_ids=segment_ids,
        attention_mask=attention_mask,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
        mix_scores=mix_scores,
        mix_weights=mix_weights,
        attention_bias=attention_bias,
        score_modifier=score_modifier,
    )
    chosen = IMPLEMENTATIONS[name]
    result = chosen.load()(inputs)
    context, weights = split_result(name, result) if chosen.whole_scores else (result, None)
    if name not in BUILT_IN:
        check_result(name, inputs, context, weights)
    return context, weights if return_weights else None


def _check_length(length: int, relative_index: np.ndarray, *, drops: bool) -> None:
    """Raises an error if a text is too long for dropout, or the index is that of another length."""
    if drops and length > MAX_LENGTH:
        raise InputError(
            f"attention drops weights in texts of up to {MAX_LENGTH} tokens, not {length}; set its rate to 0"
        )
    if relative_index.shape != (2 * length - 1,):
        raise ValueError(
            f"relative_index has shape {relative_index.shape}; a text of {length} tokens has {2 * length - 1} distances"
        )


def _whole_bias(bias: jax.Array, shape: tuple[int, ...], *, gather: bool) -> jax.Array:
    """Returns a bias as [B,N,T,T] or [1,N,T,T]. Raises InputError if it has none of the shapes of the entry.

    ``gather`` expands a bias by distance by a gather, which has derivatives in forward mode.
    """
    batch, length, heads, _ = shape
    if bias.shape == (heads, 2 * length - 1):
        return bias[:, pairwise_index(np.arange(2 * length - 1))][None] if gather else bias_by_distance(bias, length)
    whole = (heads, length, length)
    if bias.shape not in (whole, (batch, *whole)):
        raise InputError(
            f"attention_bias has shape {bias.shape}; expected {whole}, {(batch, *whole)}, or {(heads, 2 * length - 1)} "
            "with one bias for each distance"
        )
    return bias if bias.ndim == 4 else bias[None]


def check_name(implementation: str) -> None:
    """Checks that there is an implementation with this name. Raises InputError otherwise."""
    names = ("auto", *IMPLEMENTATIONS)
    if implementation not in names:
        renamed = "'shift' is now called 'xla'; " if implementation == "shift" else ""
        near = "" if renamed else did_you_mean(implementation, names)
        raise InputError(
            f"attention={shown(implementation)}: {renamed}expected one of {', '.join(map(repr, names))}{near}"
        )


def choose_implementation(implementation: str, dtype: Any, *, whole_scores: bool) -> str:
    """Returns the name of the implementation to use; for ``auto`` the fastest one of this process's backend.

    On a CPU that is ``blocked``. On a TPU or GPU it is ``pallas``, if its kernels can be imported, use nothing that JAX
    has deprecated, and agree with the definition on this device (checked once per process and dtype); otherwise
    ``xla``. Where whole scores are needed, a CPU uses ``reference``, since a gather is cheaper there than the copies of
    a relative shift, and other backends use ``xla``. The choice is logged once.

    Args:
      implementation: ``auto`` or a name in ``IMPLEMENTATIONS``.
      dtype: of query, key and value.
      whole_scores: True if the scores of all pairs are needed at once.

    Raises:
      InputError: an unknown name, or an implementation that cannot give whole scores.
    """
    backend = jax.default_backend()
    if implementation == "auto":
        name, reason = _fastest(backend, jnp.dtype(dtype).name, whole_scores, _kernel_agrees)
        _log_choice(backend, name, reason)
        return name
    check_name(implementation)
    if whole_scores and not IMPLEMENTATIONS[implementation].whole_scores:
        able = [name for name, other in IMPLEMENTATIONS.items() if other.whole_scores]
        raise InputError(
            f"attention={implementation!r} never holds the whole scores, which returned attentions, talking heads, "
            f"attention_bias and score_modifier need; use 'auto', {' or '.join(map(repr, able))}"
        )
    return implementation


def expected_implementation(platform: str, dtype: Any, *, whole_scores: bool = False) -> str:
    """Returns the implementation that ``auto`` would select on ``platform``, whose devices are not here.

    Assumes that kernels that can be lowered for the platform pass their self-check there.
    """
    agrees = functools.partial(_kernel_lowers, platform)
    return _fastest(platform, jnp.dtype(dtype).name, whole_scores=whole_scores, agrees=agrees)[0]


def _fastest(backend: str, dtype: str, whole_scores: bool, agrees: Callable[[str], bool]) -> tuple[str, str]:
    """Returns an implementation, and the reason where it is not the backend's usual one.

    Args:
      agrees: dtype -> whether the kernels can be relied on; called only where they are candidates.
    """
    if whole_scores:
        return (
            "reference" if backend == "cpu" else "xla",
            ", as attentions, talking heads, biases or modifiers need the scores whole",
        )
    if backend == "cpu":
        return "blocked", ""
    if backend not in KERNEL_PLATFORMS:
        return "xla", ""
    if dtype not in KERNEL_PLATFORMS[backend].dtypes:
        return "xla", f", as the kernel does not compute in {dtype}"
    return ("pallas", "") if agrees(dtype) else ("xla", ", as the kernel failed its check on this device")


def _kernel_agrees(dtype: str) -> bool:
    from deberta_jax.ops.attention.pallas.self_check import kernel_agrees

    return kernel_agrees(dtype)


def _kernel_lowers(platform: str, dtype: str) -> bool:
    from deberta_jax.ops.attention.pallas.self_check import kernel_lowers

    return kernel_lowers(platform, dtype)


@functools.cache
def _log_choice(backend: str, name: str, reason: str) -> None:
    _log.info("attention on %s: %r%s", backend, name, reason)
