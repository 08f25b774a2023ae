"""Traces a model to StableHLO by ``jax.export``: one program for a length, any batch size, and several platforms."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from deberta_jax.models import Model, spec_of_model
from deberta_jax.weights.trees import nested

PLATFORMS = ("cpu", "cuda", "tpu")
"""The platforms that every program is lowered for, by JAX's names."""

Arrays = Mapping[str, Any]


def function_of(model: Model) -> Callable[[Arrays, Arrays], dict[str, jax.Array]]:
    """Returns the function that a program computes.

    It takes the weights by path and the inputs by name, and returns the outputs by name in float32.
    """

    def compute(weights: Arrays, inputs: Arrays) -> dict[str, jax.Array]:
        output = model.apply({"params": nested(weights)}, **inputs)
        return {name: value.astype(jnp.float32) for name, value in vars(output).items() if value is not None}

    return compute


def input_names(model: Model) -> tuple[str, ...]:
    """Returns the names of the inputs, each int32 [B,T], or [B,C,T] for multiple choice."""
    types = ("token_type_ids",) if model.config.type_vocab_size > 0 else ()
    return ("input_ids", "attention_mask", *types)


def export_program(model: Model, weights: Arrays, length: int) -> export.Exported:
    """Traces a model for rows of ``length`` tokens; the number of rows, and of choices, stays open.

    Args:
      model: with an attention that all platforms have.
      weights: its parameters by path; only shapes and dtypes are read.
    """
    choices = spec_of_model(model)[1].model.reads_choices
    batch = export.symbolic_shape("batch, choices" if choices else "batch")
    tokens = jax.ShapeDtypeStruct((*batch, length), jnp.int32)
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in weights.items()}
    inputs = dict.fromkeys(input_names(model), tokens)
    return export.export(jax.jit(function_of(model)), platforms=PLATFORMS)(shapes, inputs)
