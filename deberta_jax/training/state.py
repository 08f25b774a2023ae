"""The state of a run: parameters, optimizer state, rng and step, and where each array of it lives."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deberta_jax.models import Model, abstract_params, logical_axes
from deberta_jax.sharding import tree_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: int32 scalar, steps taken; rng: raw key data, from which each step derives its own key."""

    step: jax.Array
    params: Any
    opt_state: Any
    rng: jax.Array


def make_state(params: Any, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step."""
    rng = jax.random.key_data(jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), rng)


def state_shardings(model: Model, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """A TrainState of shardings: moments live where their parameters do, all else on every device."""
    params = tree_shardings(logical_axes(model), mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    abstract = jax.eval_shape(optimizer.init, abstract_params(model))
    opt_state = optax.tree_map_params(
        optimizer, lambda _, sharding: sharding, abstract, params, transform_non_params=lambda _: everywhere
    )
    return TrainState(everywhere, params, opt_state, everywhere)  # pyright: ignore[reportArgumentType]
