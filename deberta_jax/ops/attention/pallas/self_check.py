"""Checks once per process whether the attention kernels agree with the definition on this device.

The kernels were written without a TPU or a GPU. Before ``auto`` uses them, one short text is attended by both, with
gradients and dropout. Kernels that do not compile, fail, or differ are not used. The definition runs on the host's CPU
where JAX has it.
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

from deberta_jax.ops.attention.dropout import keep_mask
from deberta_jax.ops.attention.inputs import AttentionInputs
from deberta_jax.ops.attention.pallas.kernel_attention import pallas_attention
from deberta_jax.ops.attention.pallas.platforms import check_device
from deberta_jax.ops.attention.reference import reference_attention
from deberta_jax.ops.attention.relative_position import make_relative_index
from deberta_jax.ops.dropout import dropout_seeds

_log = logging.getLogger(__name__)

# Relative to an array's largest magnitude. A wrong index or sign differs by more than 1.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}
_DROPOUT_RATE = 0.25


@functools.cache
def kernel_agrees(
    dtype: str, *, attend: Callable = pallas_attention, length: int = 1100, interpret: Any = None
) -> bool:
    """Returns True if ``attend`` compiles and runs on this process's first device, and agrees with the definition.

    The answer is remembered for each dtype, and one line is logged. May be called while a function is traced: the check
    runs in its own thread, which has neither the caller's trace nor its mesh.

    Args:
      dtype: ``float32``, ``bfloat16`` or, on a GPU, ``float16``.
      attend: (inputs, interpret=) -> context.
      length: tokens of the text; the default takes every path of the kernels: near blocks, far blocks and padding.
      interpret: passed to ``attend``.
    """
    with ThreadPoolExecutor(1) as own_thread:
        return own_thread.submit(_check, dtype, attend, length, interpret).result()


@functools.cache
def kernel_lowers(platform: str, dtype: str) -> bool:
    """Returns whether the kernels can be lowered for ``platform`` without deprecated parts of JAX; needs no device.

    The answer is remembered for each platform and dtype; the reason is logged where they cannot.
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

    Runs in its own thread, as ``kernel_agrees`` does.

    Raises:
      InputError: kernels that cannot be imported, or that do not compute in ``dtype``.
      Exception: whatever JAX raises for a kernel that it does not lower.
    """
    with ThreadPoolExecutor(1) as own_thread:
        own_thread.submit(_lower, platform, dtype).result()


def _lower(platform: str, dtype: str) -> None:
    arrays, relative_index, segment_ids, cotangent = _example(length=100)
    arrays = {name: a.astype(dtype) for name, a in arrays.items()}

    def both(arrays, segment_ids, cotangent):
        attend = lambda a: pallas_attention(_inputs(a, relative_index, segment_ids))
        context, pull = jax.vjp(attend, arrays)
        return context, pull(cotangent)

    # Pallas needs to know which GPU it lowers a kernel for.
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    mesh = jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))
    with mesh if platform == "gpu" else contextlib.nullcontext():
        traced = jax.jit(both).trace(arrays, segment_ids, cotangent.astype(dtype))
        traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,))


@contextlib.contextmanager
def _deprecated_kernels_refused() -> Iterator[None]:
    """Raises JAX's warning that a Pallas backend is deprecated: ``auto`` does not use what will be removed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=r".*Pallas.* deprecated", category=DeprecationWarning)
        yield


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"


def _check(dtype: str, attend: Callable, length: int, interpret: Any) -> bool:
    device = jax.local_devices()[0]
    name, start = f"attention kernel on {device.device_kind} in {dtype}", time.perf_counter()
    try:
        with _deprecated_kernels_refused():
            check_device(device)
            attend = functools.partial(attend, interpret=interpret)
            largest, array = _largest_difference(dtype, attend, device, length)
    except Exception as error:  # whatever a compiler or a driver may raise: the kernel is not used, and that is logged
        _log.warning("%s: not used, it failed: %s", name, _first_line(error))
        return False
    agrees = largest <= _TOLERANCE[dtype]
    verdict = "agrees with the definition" if agrees else "not used, it differs from the definition"
    level = logging.INFO if agrees else logging.WARNING
    taken = time.perf_counter() - start
    _log.log(level, "%s: %s; largest relative difference %.1e (%s); %.1f s", name, verdict, largest, array, taken)
    return agrees


def _largest_difference(dtype: str, attend: Callable, device: Any, length: int) -> tuple[float, str]:
    """Returns the largest difference of any array, relative to its largest magnitude, and the array's name.

    NaN counts as infinite.
    """
    arrays, relative_index, segment_ids, cotangent = _example(length)
    arrays = {name: a.astype(dtype) for name, a in arrays.items()}
    key = jax.random.key(0, impl="threefry2x32")

    def of_kernel(arrays, segment_ids, cotangent):
        attend_at = lambda rate: (
            lambda a: attend(_inputs(a, relative_index, segment_ids, dropout_rate=rate, dropout_key=key))
        )
        dropped, pull = jax.vjp(attend_at(_DROPOUT_RATE), arrays)
        context, pull_all = jax.vjp(attend_at(0.0), arrays)
        return {"context": context, **pull_all(cotangent)[0]}, {
            "context": dropped,
            "value": pull(cotangent)[0]["value"],
        }

    def of_definition(arrays, segment_ids, cotangent, keep):
        attend = lambda a: reference_attention(_inputs(a, relative_index, segment_ids))
        context, pull, weights = jax.vjp(attend, arrays, has_aux=True)
        weights = jnp.where(keep, weights / (1.0 - _DROPOUT_RATE), 0.0)
        dropped = jnp.einsum("BNTS,BSNH->BTNH", weights, arrays["value"])
        d_value = jnp.einsum("BNTS,BTNH->BSNH", weights, cotangent)
        return {"context": context, **pull(cotangent)[0]}, {"context": dropped, "value": d_value}

    with jax.default_device(device):
        seeds = np.asarray(dropout_seeds(key))
        ours = jax.jit(of_kernel)(arrays, segment_ids, cotangent.astype(dtype))
        ours = jax.tree.map(lambda a: np.asarray(a, np.float32), ours)
    keep = keep_mask(seeds, 1, arrays["query"].shape[2], length, _DROPOUT_RATE)
    with jax.default_device(_host(device)):
        exact = {name: np.float32(a) for name, a in arrays.items()}
        expected = jax.jit(of_definition)(exact, segment_ids, np.float32(cotangent.astype(dtype)), keep)
    differences = {
        f"{name}{' with dropout' if i else ''}": np.abs(a - np.asarray(expected[i][name])).max() / np.abs(a).max()
        for i, part in enumerate(ours)
        for name, a in part.items()
    }
    largest = max(differences, key=lambda name: np.nan_to_num(differences[name], nan=np.inf))
    return float(np.nan_to_num(differences[largest], nan=np.inf)), largest


def _inputs(arrays: dict[str, Any], relative_index: np.ndarray, segment_ids: Any, **options: Any) -> AttentionInputs:
    scale = (3 * arrays["query"].shape[-1]) ** -0.5
    return AttentionInputs(**arrays, relative_index=relative_index, scale=scale, segment_ids=segment_ids, **options)


def _host(device: Any) -> Any:
    """Returns a CPU if JAX was started with one: there the definition compiles in a second, and products are exact."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return device


def _example(length: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Returns arrays, relative_index, segment_ids and a cotangent of one row.

    The tables are asymmetric, the row holds two packed texts and padding, and the index is that of a small v3, so that
    some blocks are far.
    """
    random, heads, size, span = np.random.RandomState(0), 2, 64, 32
    draw = lambda *shape: random.standard_normal(shape).astype(np.float32)
    arrays = {name: draw(1, length, heads, size) for name in ("query", "key", "value")}
    arrays |= {name: draw(2 * span, heads, size) for name in ("pos_key", "pos_query")}
    relative_index = make_relative_index(length, span, buckets=span, max_distance=2 * span, clamp=True)
    position = np.arange(length)
    segment_ids = np.where(position < length // 3, 1, np.where(position < length - 5, 2, 0)).astype(np.int32)[None]
    return arrays, relative_index, segment_ids, draw(1, length, heads, size)
