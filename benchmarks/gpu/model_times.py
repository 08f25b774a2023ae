"""Forward passes and train steps of a v3-base classifier in JAX, as `deberta-jax bench` runs them, on one device."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from worker import Case, Request, Skip, digits

from deberta_jax.benchmarking import timing
from deberta_jax.benchmarking.cases import Case as BenchCase
from deberta_jax.errors import InputError
from deberta_jax.ops.attention import IMPLEMENTATIONS, choose_implementation
from deberta_jax.presets import PRESETS

# Job, rows, length, texts: see benchmarking.cases.Case. The least memory comes first: a process knows only its highest.
FULL = (
    ("forward", 32, 512, "fixed"),
    ("train", 32, 512, "fixed"),
    ("forward", 32, 512, "mixed"),
    ("train", 32, 512, "mixed"),
    ("train", 32, 128, "fixed"),
    ("forward", 32, 128, "fixed"),
)
TINY = (("forward", 2, 32, "fixed"), ("train", 2, 32, "mixed"))
_STEPS = 10


def settings(request: Request) -> list[BenchCase]:
    """Returns what is timed, here and in PyTorch."""
    config, name = PRESETS["deberta-v3-base"], "v3-base"
    if request.tiny:
        config, name = (
            dataclasses.replace(
                config,
                vocab_size=64,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=64,
                position_buckets=8,
            ),
            "tiny",
        )
    return [
        BenchCase(name=name, config=config, job=job, length=length, rows=rows, dtype="bfloat16", texts=texts)
        for job, rows, length, texts in (TINY if request.tiny else FULL)
    ]


def describe(case: BenchCase) -> str:
    """Returns the name by which rows of JAX and of PyTorch are compared."""
    return f"{case.job} {case.rows}x{case.length} {case.texts}"


def cases(request: Request) -> list[Case]:
    """Returns all settings with ``auto``, then, unless tiny, the longest train step with each implementation."""
    chosen = settings(request)
    train = next(case for case in chosen if case.job == "train")
    others = [] if request.tiny else [name for name in reversed(IMPLEMENTATIONS) if name != "reference"]
    chosen += [dataclasses.replace(train, attention=name) for name in others]
    return [
        Case(f"{case.attention}, {describe(case)}", functools.partial(measure, case), group=case.attention)
        for case in chosen
    ]


def measure(case: BenchCase) -> dict[str, Any]:
    """Returns tokens a second, milliseconds, memory, and the attention that was used.

    Raises:
      Skip: the implementation refuses this backend, or is what ``auto`` has been timed with.
    """
    auto = choose_implementation("auto", jnp.bfloat16, whole_scores=False)
    if case.attention == auto:
        raise Skip("it is what auto takes here")
    before = _highest_memory()
    try:
        row = timing.measure(case, steps=_STEPS, peak=_matmul_throughput(case.dtype))
    except InputError as refusal:
        raise Skip(str(refusal)) from refusal
    row |= {"name": describe(case), "attention": auto if case.attention == "auto" else case.attention}
    if "error" in row:
        return row | {"status": "error", "reason": row["error"]}
    if row["device_peak_bytes"] == before:
        row["device_peak_bytes"] = None  # that of an earlier case in this process
    tokens = case.rows * case.length * (1 - row["padding"])
    return row | {"milliseconds": digits(1e3 * tokens / row["tokens_per_second"])}


def _highest_memory() -> int | None:
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


@functools.cache
def _matmul_throughput(dtype: str) -> float:
    return timing.matmul_throughput(dtype)
