"""Asks the device once whether the attention kernel computes what the definition does, before anything relies on it.

No TPU and no GPU was at hand when the kernels were written. One short text is attended by both, forward, gradients and
dropout; a kernel that does not compile, fails, or differs is not used. The definition runs on the host's CPU where JAX
has it.
"""

import contextlib
import functools
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh

from deberta_jax.ops.attention.pallas.kernel_attention import pallas_attention
from deberta_jax.ops.attention.reference import reference_attention
from deberta_jax.ops.attention.relative_position import table_rows
from deberta_jax.ops.dropout import dropout_seeds, keep_mask

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


@functools.cache
def kernel_lowers(platform: str, dtype: str) -> bool:
    """Returns whether the kernels can be lowered for ``platform`` without deprecated parts of JAX; needs no device.

    Remembered for each platform and dtype; logs the reason where they cannot.
    """
    try:
        with _deprecated_kernels_refused():
            lower_kernel(platform, dtype)
    except Exception as error:  # a part of JAX that is missing, deprecated or refuses the kernel
        _log.warning("attention kernel for %s in %s: not used: %s", platform, dtype, _first_line(error))
        return False
    return True


def lower_kernel(platform: str, dtype: str) -> None:
    """Lowers the kernels for ``platform``, forward and backward, without compiling them; needs no such device.

    Works in a thread of its own, as ``kernel_agrees`` does.

    Raises:
      InputError: kernels that cannot be imported, or that do not compute in ``dtype``.
      Exception: whatever JAX raises for a kernel that it does not lower.
    """
    with ThreadPoolExecutor(1) as own_thread:
        own_thread.submit(_lower, platform, dtype).result()


def _lower(platform: str, dtype: str) -> None:
    arrays, rows, texts, cotangent = _inputs(length=100)
    arrays = {name: a.astype(dtype) for name, a in arrays.items()}

    def both(arrays, texts, cotangent):
        attend = lambda a: pallas_attention(**a, rows=rows, scale=_scale(a), texts=texts)
        context, pull = jax.vjp(attend, arrays)
        return context, pull(cotangent)

    # Pallas asks for the kind of GPU that it lowers a kernel for.
    kind = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    mesh = jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=kind))
    with mesh if platform == "gpu" else contextlib.nullcontext():
        traced = jax.jit(both).trace(arrays, texts, cotangent.astype(dtype))
        traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,))


@contextlib.contextmanager
def _deprecated_kernels_refused() -> Iterator[None]:
    """Raises JAX's warning that a Pallas backend is deprecated: what will be removed is not used unless named."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=r".*Pallas.* deprecated", category=DeprecationWarning)
        yield


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"


def _check(dtype: str, body: Callable, length: int, interpret: Any) -> bool:
    device = jax.local_devices()[0]
    name, start = f"attention kernel on {device.device_kind} in {dtype}", time.perf_counter()
    try:
        with _deprecated_kernels_refused():
            worst, where = _largest_difference(dtype, functools.partial(body, interpret=interpret), device, length)
    except Exception as error:  # whatever a compiler or a driver may raise: the kernel is then not used, and it is said
        _log.warning("%s: not used, it failed: %s", name, _first_line(error))
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
