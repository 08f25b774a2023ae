"""Times of one attention in JAX: every implementation, XLA's plain attention and cuDNN's, without masks or dropout.

Each is timed in turn with XLA's plain attention of the same shape, and with a program of next to no work: a time near
that program's is the host's, not the device's.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import implementations
import jax
import jax.numpy as jnp
import numpy as np
from attention import program
from timing import seconds_per_call
from worker import Case, Request, Skip, digits, times_row

from deberta_jax.errors import InputError
from deberta_jax.ops.attention import expected_implementation
from deberta_jax.ops.attention.relative_position import compact_relative_index, make_relative_index

# Batch and length of each shape; heads and head size.
FULL = ((32, 512), (256, 128), (4, 2048), (1, 8192)), (12, 64)
TINY = ((2, 16),), (2, 16)
JOBS = ("forward", "forward+backward")
PLAIN, CUDNN, CUDNN_BIAS = "plain, XLA", "plain, cuDNN", "plain, cuDNN with a bias"
# Longer programs of the definition hold its index of every pair, which takes XLA most of a minute to compile.
_LONGEST_REFERENCE = 2048
_ROUNDS = 5

Shape = tuple[int, int, int, int]


def cases(request: Request) -> list[Case]:
    """Returns the cases, shape by shape: plain attention, the user's and what ``auto`` takes come first."""
    shapes, heads = TINY if request.tiny else FULL
    first = [
        PLAIN,
        *implementations.own_names(request),
        expected_implementation(jax.default_backend(), jnp.bfloat16),
        CUDNN,
    ]
    left = [name for name in implementations.names(request) if name not in (*first, implementations.REFERENCE)]
    passes = (first, [CUDNN_BIAS, *left], [implementations.REFERENCE])
    return [
        Case(
            f"{name}, {batch}x{length} {job}",
            functools.partial(measure, name, (batch, length, *heads), job, request),
            group=name,
        )
        for names in passes
        for batch, length in shapes
        for name in names
        if name != implementations.REFERENCE or length <= _LONGEST_REFERENCE
        for job in JOBS
    ]


def measure(name: str, shape: Shape, job: str, request: Request) -> dict[str, Any]:
    """Returns the milliseconds of a call, and their ratio to plain attention's."""
    plain = _plain(shape, job)
    began = time.perf_counter()
    ours = plain if name == PLAIN else _compiled(*contestant(name, shape, request), shape, job)
    compile_seconds = time.perf_counter() - began
    calls = {"plain": plain, "ours": ours, "dispatch": _nothing()}
    median = seconds_per_call(calls, jax.block_until_ready, _ROUNDS)
    batch, length, *_ = shape
    row = times_row(name, batch, length, job, median) | {"compile_seconds": digits(compile_seconds)}
    if name == CUDNN and job == "forward":
        row["difference from XLA's"] = _difference(ours(), plain())
    return row


def contestant(name: str, shape: Shape, request: Request) -> tuple[Callable[..., jax.Array], tuple[jax.Array, ...]]:
    """Returns the attention of that name and its arrays, all to be differentiated.

    Raises:
      Skip: cuDNN's attention on another backend than a GPU.
    """
    sequences = _sequences(shape)
    if name in (CUDNN, CUDNN_BIAS):
        if jax.default_backend() != "gpu":
            raise Skip("cuDNN needs a GPU")
        plain = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
        if name == CUDNN:
            return plain, sequences
        batch, length, heads, _ = shape
        bias = _draw(5, batch, heads, length, length)
        return lambda query, key, value, bias: plain(query, key, value, bias=bias), (*sequences, bias)
    if name == PLAIN:
        return functools.partial(jax.nn.dot_product_attention, implementation="xla"), sequences
    _, length, heads, size = shape
    rows, relative_index = compact_relative_index(
        make_relative_index(length, 256, buckets=256, max_distance=512, clamp=True)
    )
    tables = (_draw(3, len(rows), heads, size), _draw(4, len(rows), heads, size))
    attend = implementations.attend(name, request)
    options = {"scale": (3 * size) ** -0.5, "attention_mask": None, "segment_ids": None}
    options |= {"dropout_rate": 0.0, "dropout_key": None}
    return lambda *arrays: attend(*arrays, relative_index, **options), (*sequences, *tables)


def _draw(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def _sequences(shape: Shape) -> tuple[jax.Array, ...]:
    return tuple(_draw(seed, *shape) for seed in range(3))


@functools.lru_cache(maxsize=len(JOBS))
def _plain(shape: Shape, job: str) -> Callable[[], Any]:
    attend = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    return _compiled(attend, _sequences(shape), shape, job)


def _compiled(attend: Callable, arrays: tuple[jax.Array, ...], shape: Shape, job: str) -> Callable[[], Any]:
    """Returns the compiled job.

    Raises:
      Skip: the implementation refuses this backend.
    """
    try:
        return program(job, attend, arrays, _draw(6, *shape))
    except InputError as refusal:
        raise Skip(str(refusal)) from refusal


@functools.cache
def _nothing() -> Callable[[], Any]:
    """Returns a call with next to no work for the device."""
    x = jnp.zeros(8)
    compiled = jax.jit(lambda x: x + 1).lower(x).compile()
    return lambda: compiled(x)


def _difference(found: jax.Array, expected: jax.Array) -> float | None:
    found, expected = (np.asarray(a, np.float32) for a in (found, expected))
    return digits(float(np.linalg.norm(found - expected) / np.linalg.norm(expected)), 2)
