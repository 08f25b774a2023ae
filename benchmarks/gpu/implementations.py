"""The attention implementations that the kit checks and times: the package's own by name, and one given by the user."""

import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from worker import Request, Skip

from deberta_jax.errors import InputError
from deberta_jax.ops.attention import IMPLEMENTATIONS, disentangled_attention, expected_implementation
from deberta_jax.ops.attention.inputs import AttentionInputs
from deberta_jax.ops.attention.masks import normalize_masks

# Called as f(query, key, value, pos_key, pos_query, relative_index, *, scale, attention_mask, segment_ids,
# dropout_rate, dropout_key).
Attend = Callable[..., jax.Array]
REFERENCE = "reference"


def names(request: Request) -> list[str]:
    """Returns the definition's name, the user's, then the others': those for accelerators first, the CPU's last."""
    of_cpu = expected_implementation("cpu", jnp.float32)
    others = sorted((name for name in reversed(IMPLEMENTATIONS) if name != REFERENCE), key=lambda name: name == of_cpu)
    return [REFERENCE, *own_names(request), *others]


def own_names(request: Request) -> list[str]:
    """Returns the name of the user's implementation, if there is one."""
    return [_function_name(request.extra)] if request.extra else []


def attend(name: str, request: Request) -> Attend:
    """Returns the implementation of that name."""
    if request.extra and name == _function_name(request.extra):
        return _from_file(request.extra)

    def of_package(*arrays: Any, **options: Any) -> jax.Array:
        return disentangled_attention(*arrays, **options, implementation=name)[0]

    return of_package


def or_interpreted(name: str, request: Request, run: Callable[[Attend], Any]) -> tuple[Any, bool]:
    """Returns ``run(implementation)`` and whether it ran in Pallas' interpreter.

    An implementation that refuses this backend is interpreted if the sizes are tiny.

    Raises:
      Skip: with the reason for which the implementation refuses, where no interpreter helps.
    """
    try:
        return run(attend(name, request)), False
    except InputError as refusal:
        interpreted = _interpreted(name) if request.tiny and jax.default_backend() == "cpu" else None
        if interpreted is None:
            raise Skip(str(refusal)) from refusal
    return run(interpreted), True


def _interpreted(name: str) -> Attend | None:
    """Returns the GPU kernel in Pallas' interpreter; None for another name, and where JAX lacks what it needs."""
    if name != "pallas":
        return None
    from deberta_jax.ops.attention.pallas.kernel_attention import pallas_attention
    from deberta_jax.ops.attention.pallas.platforms import import_kernels

    try:
        import_kernels("gpu")
    except InputError:
        return None

    def run(*arrays: Any, attention_mask: Any, segment_ids: Any, **options: Any) -> jax.Array:
        given = dict(zip(("query", "key", "value", "pos_key", "pos_query", "relative_index"), arrays, strict=True))
        segment_ids, attention_mask = normalize_masks(attention_mask, segment_ids)
        masks = {"segment_ids": segment_ids, "attention_mask": attention_mask}
        return pallas_attention(AttentionInputs(**given, **masks, **options), interpret="gpu")

    return run


def _function_name(extra: str) -> str:
    return extra.rpartition(":")[2]


@functools.cache
def _from_file(extra: str) -> Attend:
    path, _, function = extra.rpartition(":")
    spec = importlib.util.spec_from_file_location("extra_attention", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)
