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
from deberta_jax.training.optimizers import Optimizer, SeparateOptimizers, path_of, split


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What is trained, before it exists: a tree of shapes, the names of its axes, and the paths that are frozen."""

    shapes: Any
    axes: Any
    frozen: frozenset[str] = frozenset()


def parameters_of(model: Model, frozen: frozenset[str] = frozenset()) -> Parameters:
    return Parameters(abstract_params(model), logical_axes(model), frozen)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: int32 scalar, steps taken; rng: raw key data, from which each step derives its own key; mean: the running
    mean of the parameters, {} where none is kept. The optimizer's state is of the trained parameters alone.

    Also a tree of whatever describes those arrays: shapes, shardings.
    """

    step: Any
    params: Any
    opt_state: Any
    rng: Any
    mean: Any


def make_state(
    params: Any,
    optimizer: Optimizer,
    seed: int,
    *,
    frozen: frozenset[str] = frozenset(),
    ema: float = 0.0,
) -> TrainState:
    """The state before the first step."""
    rng = jax.random.key_data(jax.random.key(seed))
    mean = jax.tree.map(jnp.copy, params) if ema else {}
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(split(params, frozen)[0]), rng, mean)


def state_shardings(parameters: Parameters, optimizer: Optimizer, mesh: Mesh, *, ema: float = 0.0) -> Any:
    """A TrainState of shardings: moments live where their parameters do, all else on every device.

    Raises:
      InputError: a mesh that does not divide a parameter.
    """
    params = tree_shardings(parameters.axes, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    jax.tree_util.tree_map_with_path(_check_divides, parameters.shapes, params)
    trained, trained_shardings = (split(tree, parameters.frozen)[0] for tree in (parameters.shapes, params))

    def moments(optimizer: Any, shapes: Any, shardings: Any) -> Any:
        of_others = lambda _: everywhere
        abstract = jax.eval_shape(optimizer.init, shapes)
        return optax.tree_map_params(optimizer, lambda _, s: s, abstract, shardings, transform_non_params=of_others)

    if isinstance(optimizer, SeparateOptimizers):
        opt_state: Any = {n: moments(o, trained[n], trained_shardings[n]) for n, o in optimizer.parts.items()}
    else:
        opt_state = moments(optimizer, trained, trained_shardings)
    return TrainState(everywhere, params, opt_state, everywhere, params if ema else {})


def abstract_state(
    parameters: Parameters, optimizer: Optimizer, mesh: Mesh, seed: int = 0, *, ema: float = 0.0
) -> TrainState:
    """The state as ``jax.ShapeDtypeStruct`` with shardings: what a step is compiled from without an array existing."""
    make = lambda p: make_state(p, optimizer, seed, frozen=parameters.frozen, ema=ema)
    shapes = jax.eval_shape(make, parameters.shapes)
    place = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
    return jax.tree.map(place, shapes, state_shardings(parameters, optimizer, mesh, ema=ema))


def _check_divides(path: Any, array: jax.ShapeDtypeStruct, sharding: NamedSharding) -> None:
    try:
        sharding.shard_shape(array.shape)
    except ValueError:
        sizes = ", ".join(f"{name}={size}" for name, size in sharding.mesh.shape.items())
        raise InputError(
            f"mesh {sizes}: cannot split {path_of(path)} of shape {array.shape} by {sharding.spec}; give other sizes"
        ) from None
