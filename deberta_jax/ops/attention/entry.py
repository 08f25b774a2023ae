"""Disentangled attention: the one entry, and how ``auto`` chooses among interchangeable bodies."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.errors import InputError
from deberta_jax.ops.attention.cpu.blocked_attention import blocked_attention
from deberta_jax.ops.attention.masks import visibility
from deberta_jax.ops.attention.pallas.kernel_attention import pallas_attention
from deberta_jax.ops.attention.pallas.platforms import BACKENDS
from deberta_jax.ops.attention.pallas.self_check import kernel_agrees, kernel_lowers
from deberta_jax.ops.attention.reference import reference_attention
from deberta_jax.ops.attention.xla import shift_attention
from deberta_jax.ops.dropout import LONGEST

_log = logging.getLogger(__name__)

# Bodies by name. All equal the definition, forward and every gradient. Those of the first kind hold the whole scores,
# which talking heads and returned attention weights need; the others never do.
WHOLE = {"reference": reference_attention, "shift": shift_attention}
PIECEWISE = {"blocked": blocked_attention, "pallas": pallas_attention}
BODIES = (*WHOLE, *PIECEWISE)


def choose_body(impl: str, dtype: Any, *, whole_scores: bool) -> str:
    """The body that ``impl`` names, or for ``auto`` the fastest of this backend.

    On a CPU that is ``blocked``; on a TPU or GPU ``pallas``, where its kernels can be imported, need nothing deprecated
    of JAX, and compute on this device what the definition says (checked once a process); else ``shift``, which gathers
    nothing. Where the scores are needed whole, a CPU takes
    ``reference``: there a gather is cheaper than the shift's copies.

    Raises:
      InputError: a name that no body has, or a body that cannot give what is asked.
    """
    backend = jax.default_backend()
    if impl == "auto":
        body, why = _fastest(backend, jnp.dtype(dtype).name, whole_scores, kernel_agrees)
        _log_choice(backend, body, why)
        return body
    if impl not in BODIES:
        raise InputError(f"attention={impl!r}: expected one of 'auto', {', '.join(map(repr, BODIES))}")
    if whole_scores and impl not in WHOLE:
        raise InputError(
            f"attention={impl!r} never holds the whole scores, which returned attentions and talking heads need; "
            f"use 'auto', {' or '.join(map(repr, WHOLE))}"
        )
    return impl


def expected_body(platform: str, dtype: Any) -> str:
    """Returns the implementation that ``auto`` would select on ``platform``, whose devices are not here.

    Assumes that a kernel that can be lowered for the platform passes its self-check there.
    """
    agrees = functools.partial(kernel_lowers, platform)
    return _fastest(platform, jnp.dtype(dtype).name, whole_scores=False, agrees=agrees)[0]


def _fastest(backend: str, dtype: str, whole_scores: bool, agrees: Callable[[str], bool]) -> tuple[str, str]:
    """A body and why, where it is not the backend's first; ``agrees`` asks the device about its kernel."""
    if whole_scores:
        return "reference" if backend == "cpu" else "shift", ", as attentions or talking heads need the scores whole"
    if backend == "cpu":
        return "blocked", ""
    if backend not in BACKENDS:
        return "shift", ""
    if dtype not in BACKENDS[backend].dtypes:
        return "shift", f", as the kernel does not compute in {dtype}"
    return ("pallas", "") if agrees(dtype) else ("shift", ", as the kernel failed its check on this device")


@functools.cache
def _log_choice(backend: str, body: str, why: str) -> None:
    _log.info("attention on %s: %r%s", backend, body, why)


def disentangled_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T N H"],
    value: Float[Array, "B T N H"],
    pos_key: Float[Array, "R N H"] | None,
    pos_query: Float[Array, "R N H"] | None,
    rows: Int[np.ndarray, " U"],
    *,
    scale: float,
    mask: Bool[Array, "B T"] | Bool[Array, "B T T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    mix_scores: Float[Array, "N N"] | None = None,
    mix_weights: Float[Array, "N N"] | None = None,
    return_weights: bool = False,
    impl: str = "auto",
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T T"] | None]:
    """Attention whose scores add content-to-position and position-to-content terms (He et al. 2021, section 3.1).

    Args:
      query, key, value: one dtype; products accumulate in float32, and scores and softmax are float32.
      pos_key: projected relative table for the content-to-position term; None leaves the term out.
      pos_query: the same for position-to-content.
      rows: table row of each distance from -(T-1) to T-1, int32 [2T-1], a constant of the program.
      scale: multiplies the sum of the terms; 1/sqrt(H * (1 + number of terms)).
      mask: [B,T] True for real tokens, or [B,T,T] pair by pair.
      segment_ids: [B,T] the text of each token in a packed row, 0 for padding; texts do not see each other.
      dropout_rate, dropout_key: dropout on the weights; none where the key is None.
      mix_scores, mix_weights: v1's talking heads, maps across heads before the softmax and after the dropout.
      return_weights: give the attention weights too.
      impl: ``auto``, ``reference`` (gathers: slow, the definition), ``shift``, ``blocked``, or ``pallas`` (on TPUs
        and GPUs).

    Returns:
      context [B,T,N,H] in the dtype of ``value``, zero for queries that may read nothing, and the attention weights
      before dropout, float32 [B,N,T,T], or None.

    Raises:
      InputError: an unknown ``impl``, or one that cannot give what is asked; dropout in more than 65536 tokens.
      ValueError: ``rows`` of another length than 2T-1.
    """
    length = query.shape[1]
    if dropout_key is not None and dropout_rate > 0 and length > LONGEST:
        raise InputError(f"attention drops weights in texts of up to {LONGEST} tokens, not {length}; set its rate to 0")
    if rows.shape != (2 * length - 1,):
        raise ValueError(f"rows has shape {rows.shape}; a text of {length} tokens has {2 * length - 1} distances")
    whole = return_weights or mix_scores is not None or mix_weights is not None
    name = choose_body(impl, query.dtype, whole_scores=whole)
    inputs = (query, key, value, pos_key, pos_query, rows)
    texts, pairs = visibility(mask, segment_ids)
    options = {
        "scale": scale,
        "texts": texts,
        "pairs": pairs,
        "dropout_rate": dropout_rate,
        "dropout_key": dropout_key,
    }
    if name in PIECEWISE:
        return PIECEWISE[name](*inputs, **options), None
    context, weights = WHOLE[name](*inputs, **options, mix_scores=mix_scores, mix_weights=mix_weights)
    return context, weights if return_weights else None
