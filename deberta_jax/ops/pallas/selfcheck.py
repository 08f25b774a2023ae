"""Asks the device once whether the attention kernel computes what the definition does, before anything relies on it.

No TPU and no GPU was at hand when the kernels were written. One short text is attended by both, forward, gradients and
dropout; a kernel that does not compile, fails, or differs is not used. The definition runs on the host's CPU where JAX
has it.
"""

import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.ops.dropout import dropout_seeds, keep_mask
from deberta_jax.ops.pallas.attention import pallas_attention
from deberta_jax.ops.reference import reference_attention
from deberta_jax.ops.relative_position import table_rows

_log = logging.getLogger(__name__)

# Relative to an array's largest magnitude. A wrong index or sign differs by more than 1.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}
_RATE = 0.25


@functools.cache
def kernel_agrees(dtype: str, *, body: Callable = pallas_attention, length: int = 1100, interpret: Any = None) -> bool:
    """True if ``body`` compiles and runs on this process's first device, and agrees with the definition there.

    Asked once for each dtype and remembered; logs one line. May be called while a function is traced: it works in a
    thread of its own, which has neither the caller's trace nor its mesh.

    Args:
      dtype: ``float32``, ``bfloat16`` or, on a GPU, ``float16``.
      length: of the text; the default takes every path of the kernel, near and far blocks and padding.
    """
    with ThreadPoolExecutor(1) as own_thread:
        return own_thread.submit(_check, dtype, body, length, interpret).result()


def _check(dtype: str, body: Callable, length: int, interpret: Any) -> bool:
    device = jax.local_devices()[0]
    name, start = f"attention kernel on {device.device_kind} in {dtype}", time.perf_counter()
    try:
        worst, where = _largest_difference(dtype, functools.partial(body, interpret=interpret), device, length)
    except Exception as error:  # whatever a compiler or a driver may raise: the kernel is then not used, and it is said
        _log.warning("%s: not used, it failed: %s: %s", name, type(error).__name__, str(error).split("\n")[0][:300])
        return False
    agrees = worst <= _TOLERANCE[dtype]
    verdict = "agrees with the definition" if agrees else "not used, it differs from the definition"
    level = logging.INFO if agrees else logging.WARNING
    taken = time.perf_counter() - start
    _log.log(level, "%s: %s; largest relative difference %.1e (%s); %.1f s", name, verdict, worst, where, taken)
    return agrees


def _largest_difference(dtype: str, body: Callable, device: Any, length: int) -> tuple[float, str]:
    """Largest difference of any array relative to its largest magnitude, NaN counted as infinite, and the array."""
    arrays, rows, texts, cotangent = _inputs(length)
    arrays = {name: a.astype(dtype) for name, a in arrays.items()}
    key = jax.random.key(0, impl="threefry2x32")

    def found(arrays, texts, cotangent):
        attend = lambda rate: (
            lambda a: body(**a, rows=rows, scale=_scale(a), texts=texts, dropout_rate=rate, dropout_key=key)
        )
        dropped, pull = jax.vjp(attend(_RATE), arrays)
        context, pull_all = jax.vjp(attend(0.0), arrays)
        return {"context": context, **pull_all(cotangent)[0]}, {
            "context": dropped,
            "value": pull(cotangent)[0]["value"],
        }

    def expected(arrays, texts, cotangent, keep):
        attend = lambda a: reference_attention(**a, rows=rows, scale=_scale(a), texts=texts)
        context, pull, weights = jax.vjp(attend, arrays, has_aux=True)
        weights = jnp.where(keep, weights / (1.0 - _RATE), 0.0)
        dropped = jnp.einsum("BNTS,BSNH->BTNH", weights, arrays["value"])
        back = jnp.einsum("BNTS,BTNH->BSNH", weights, cotangent)
        return {"context": context, **pull(cotangent)[0]}, {"context": dropped, "value": back}

    with jax.default_device(device):
        seeds = np.asarray(dropout_seeds(key))
        ours = jax.jit(found)(arrays, texts, cotangent.astype(dtype))
        ours = jax.tree.map(lambda a: np.asarray(a, np.float32), ours)
    keep = keep_mask(seeds, 1, arrays["query"].shape[2], length, _RATE)
    with jax.default_device(_judge(device)):
        exact = {name: np.float32(a) for name, a in arrays.items()}
        theirs = jax.jit(expected)(exact, texts, np.float32(cotangent.astype(dtype)), keep)
    differences = {
        f"{name}{' with dropout' if at else ''}": np.abs(a - np.asarray(theirs[at][name])).max() / np.abs(a).max()
        for at, part in enumerate(ours)
        for name, a in part.items()
    }
    where = max(differences, key=lambda name: np.nan_to_num(differences[name], nan=np.inf))
    return float(np.nan_to_num(differences[where], nan=np.inf)), where


def _scale(arrays: dict[str, Any]) -> float:
    return (3 * arrays["query"].shape[-1]) ** -0.5


def _judge(device: Any) -> Any:
    """A CPU if JAX was started with one: there the definition compiles in a second, and products are exact."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return device


def _inputs(length: int):
    """Asymmetric tables, two packed texts and padding; rows of v3 in small, so that far blocks are among them."""
    random, heads, size, span = np.random.RandomState(0), 2, 64, 32
    draw = lambda *shape: random.standard_normal(shape).astype(np.float32)
    arrays = {name: draw(1, length, heads, size) for name in ("query", "key", "value")}
    arrays |= {name: draw(2 * span, heads, size) for name in ("pos_key", "pos_query")}
    rows = table_rows(length, span, buckets=span, max_distance=2 * span, clamp=True)
    at = np.arange(length)
    texts = np.where(at < length // 3, 1, np.where(at < length - 5, 2, 0)).astype(np.int32)[None]
    return arrays, rows, texts, draw(1, length, heads, size)
