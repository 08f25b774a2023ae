"""The state of a run: parameters, optimizer state, rng and step, and where each array of it lives."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deberta_jax.errors import InputError
from deberta_jax.models import Model, abstract_params, logical_axes
from deberta_jax.sharding import tree_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: int32 scalar, steps taken; rng: raw key data, from which each step derives its own key.

    Also a tree of whatever describes those arrays: shapes, shardings.
    """

    step: Any
    params: Any
    opt_state: Any
    rng: Any


def make_state(params: Any, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step."""
    rng = jax.random.key_data(jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), rng)


def state_shardings(model: Model, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """A TrainState of shardings: moments live where their parameters do, all else on every device.

    Raises:
      InputError: a mesh that does not divide a parameter.
    """
    params = tree_shardings(logical_axes(model), mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    shapes = abstract_params(model)
    jax.tree_util.tree_map_with_path(_check_divides, shapes, params)
    abstract = jax.eval_shape(optimizer.init, shapes)
    opt_state = optax.tree_map_params(
        optimizer, lambda _, sharding: sharding, abstract, params, transform_non_params=lambda _: everywhere
    )
    return TrainState(everywhere, params, opt_state, everywhere)


def _check_divides(path: Any, array: jax.ShapeDtypeStruct, sharding: NamedSharding) -> None:
    try:
        sharding.shard_shape(array.shape)
    except ValueError:
        sizes = ", ".join(f"{name}={size}" for name, size in sharding.mesh.shape.items())
        name = "/".join(key.key for key in path)
        raise InputError(
            f"mesh {sizes}: cannot split {name} of shape {array.shape} by {sharding.spec}; give other sizes"
        ) from None
