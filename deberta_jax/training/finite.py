"""Finds numbers that are not finite before a run is evaluated, saved or called finished."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deberta_jax.training.optimizers import path_of

ADVICE = "the run has diverged; lower --learning-rate or lengthen --warmup. The last saved state is from before"


class NotFinite(FloatingPointError):
    """Reports a number that is not finite; ``step`` is the first step that has one."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class ParameterCheck:
    """Checks that all parameters of a run are finite, by one program that reads each once."""

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        finite = lambda leaves: jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])
        self.finite = jax.jit(finite, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, params: Any, step: int) -> None:
        """Checks the parameters after ``step`` steps. Raises NotFinite, which names the first one."""
        leaves, _ = jax.tree_util.tree_flatten_with_path(params)
        with jax.set_mesh(self.mesh):
            finite = np.asarray(jax.device_get(self.finite([leaf for _, leaf in leaves])))
        if not finite.all():
            name = path_of(leaves[int(np.argmin(finite))][0])
            raise NotFinite(f"the parameter {name} is not finite after step {step}: {ADVICE}", max(step - 1, 0))


def check_metrics(metrics: Mapping[str, float | None], step: int) -> None:
    """Checks that the metrics of an evaluation after ``step`` steps are finite or None. Raises NotFinite."""
    for name, value in metrics.items():
        if value is not None and not math.isfinite(value):
            raise NotFinite(
                f"the {name.replace('_', ' ')} of the evaluation is {value} after step {step}: {ADVICE}",
                max(step - 1, 0),
            )


def finite_json(value: Any) -> Any:
    """Returns a JSON value with None in place of each number that is not finite, for details that are only shown."""
    if isinstance(value, dict):
        return {name: finite_json(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
