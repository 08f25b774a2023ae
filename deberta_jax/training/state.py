"""Defines the state of a run: parameters, optimizer state, rng and step, and how each array is sharded."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deberta_jax.errors import InputError
from deberta_jax.models import Model, abstract_params, logical_axes
from deberta_jax.sharding import current_mesh, tree_shardings
from deberta_jax.training.optimizers import Optimizer, SeparateOptimizers, path_of, split_frozen


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Describes the parameters of a run without their arrays.

    Attributes:
      shapes: tree of ``jax.ShapeDtypeStruct``.
      axes: the same tree with the logical axis names of each leaf.
      frozen: paths of the leaves that are not trained.
    """

    shapes: Any
    axes: Any
    frozen: frozenset[str] = frozenset()


def parameters_of(model: Model, frozen: frozenset[str] = frozenset()) -> Parameters:
    """Returns the description of a model's parameters."""
    return Parameters(abstract_params(model), logical_axes(model), frozen)


@dataclasses.dataclass(frozen=True)
class TrainState:
    """Holds the state of a run, or a tree that describes its arrays, such as their shapes or shardings.

    Attributes:
      step: int32 scalar, the number of steps taken.
      params: tree of all parameters.
      opt_state: the optimizer's state, of the trained parameters alone.
      rng: raw key data, from which each step derives its own key.
      ema_params: exponential moving average of the parameters; {} where none is kept.
    """

    step: Any
    params: Any
    opt_state: Any
    rng: Any
    ema_params: Any


# States on disk call the moving average "mean".
_SAVED_NAMES = {"step": "step", "params": "params", "opt_state": "opt_state", "rng": "rng", "ema_params": "mean"}


def _flatten(state: TrainState) -> tuple[tuple[tuple[Any, Any], ...], None]:
    return tuple((jax.tree_util.GetAttrKey(saved), getattr(state, n)) for n, saved in _SAVED_NAMES.items()), None


jax.tree_util.register_pytree_with_keys(TrainState, _flatten, lambda _, children: TrainState(*children))


def make_state(
    params: Any,
    optimizer: Optimizer,
    seed: int,
    *,
    frozen: frozenset[str] = frozenset(),
    ema: float = 0.0,
) -> TrainState:
    """Returns the state before the first step.

    Args:
      seed: of the rng.
      frozen: paths of the parameters that are not trained.
      ema: decay of the moving average of the parameters; 0: none is kept.
    """
    rng = jax.random.key_data(jax.random.key(seed))
    ema_params = jax.tree.map(jnp.copy, params) if ema else {}
    opt_state = optimizer.init(split_frozen(params, frozen)[0])
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, rng, ema_params)


def init_state(
    params: Any, optimizer: Optimizer, seed: int = 0, *, frozen: frozenset[str] = frozenset(), ema: float = 0.0
) -> TrainState:
    """Returns the state before the first step, with every array sharded as its parameter.

    The buffers of ``params`` become those of the state: read the parameters from there afterwards.

    Args:
      params: tree of arrays, on one device or sharded over a mesh.
      seed, frozen, ema: as for ``make_state``.
    """
    params = jax.tree.map(jnp.asarray, params)
    make = lambda p: make_state(p, optimizer, seed, frozen=frozen, ema=ema)
    mesh = mesh_of_arrays(params)
    if mesh is None:
        return jax.jit(make, donate_argnums=0)(params)
    shardings = _state_shardings(params, _shardings_of(params), frozen, optimizer, mesh, ema)
    return jax.jit(make, out_shardings=shardings, donate_argnums=0)(params)


def init_optimizer(optimizer: Optimizer, params: Any) -> Any:
    """Returns the state of an optimizer, its moments sharded as their parameters.

    ``jax.jit(optimizer.init)`` alone would put a copy of all moments on every device.

    Args:
      optimizer: of optax, or ``SeparateOptimizers``.
      params: tree of arrays, on one device or sharded over a mesh.
    """
    params = jax.tree.map(jnp.asarray, params)
    mesh = mesh_of_arrays(params)
    if mesh is None:
        return jax.jit(optimizer.init)(params)
    return jax.jit(optimizer.init, out_shardings=_moments(optimizer, params, _shardings_of(params), mesh))(params)


def parameter_shardings(model: Model, mesh: Mesh | None = None) -> Any:
    """Returns the sharding of every parameter of a model by its logical axes, for ``jax.device_put`` or ``jax.jit``.

    Args:
      mesh: None: the one of ``sharding.use``.

    Raises:
      InputError: there is no mesh, or it does not divide a parameter.
    """
    mesh = current_mesh() if mesh is None else mesh
    if mesh is None:
        raise InputError("parameter_shardings: there is no mesh; call it inside `with sharding.use(mesh):`")
    return _checked_shardings(parameters_of(model), mesh)


def mesh_of_arrays(tree: Any) -> Mesh | None:
    """Returns the mesh that the arrays of a tree are sharded over; None if they are not."""
    meshes = (leaf.sharding.mesh for leaf in jax.tree.leaves(tree) if isinstance(leaf.sharding, NamedSharding))
    return next((mesh for mesh in meshes if isinstance(mesh, Mesh)), None)


def state_shardings(parameters: Parameters, optimizer: Optimizer, mesh: Mesh, *, ema: float = 0.0) -> TrainState:
    """Returns a TrainState of shardings: an optimizer's moments as their parameters, all else on every device.

    Raises:
      InputError: a mesh that does not divide a parameter.
    """
    params = _checked_shardings(parameters, mesh)
    return _state_shardings(parameters.shapes, params, parameters.frozen, optimizer, mesh, ema)


def _checked_shardings(parameters: Parameters, mesh: Mesh) -> Any:
    shardings = tree_shardings(parameters.axes, mesh)
    jax.tree_util.tree_map_with_path(_check_divides, parameters.shapes, shardings)
    return shardings


def _state_shardings(
    shapes: Any, params: Any, frozen: frozenset[str], optimizer: Optimizer, mesh: Mesh, ema: float
) -> TrainState:
    """Returns the shardings of a state by the shardings ``params`` of its parameters."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    trained, trained_shardings = (split_frozen(tree, frozen)[0] for tree in (shapes, params))
    opt_state = _moments(optimizer, trained, trained_shardings, mesh)
    return TrainState(everywhere, params, opt_state, everywhere, params if ema else {})


def _moments(optimizer: Any, shapes: Any, shardings: Any, mesh: Mesh) -> Any:
    """Returns the shardings of an optimizer's state."""
    if isinstance(optimizer, SeparateOptimizers):
        return {n: _moments(o, shapes[n], shardings[n], mesh) for n, o in optimizer.parts.items()}
    of_others = lambda _: NamedSharding(mesh, PartitionSpec())
    abstract = jax.eval_shape(optimizer.init, shapes)
    return optax.tree_map_params(optimizer, lambda _, s: s, abstract, shardings, transform_non_params=of_others)


def _shardings_of(tree: Any) -> Any:
    return jax.tree.map(lambda array: array.sharding, tree)


def abstract_state(
    parameters: Parameters, optimizer: Optimizer, mesh: Mesh, seed: int = 0, *, ema: float = 0.0
) -> TrainState:
    """Returns the state as ``jax.ShapeDtypeStruct`` with shardings, to compile a step without any array."""
    make = lambda p: make_state(p, optimizer, seed, frozen=parameters.frozen, ema=ema)
    shapes = jax.eval_shape(make, parameters.shapes)
    sharded = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
    return jax.tree.map(sharded, shapes, state_shardings(parameters, optimizer, mesh, ema=ema))


def _check_divides(path: Any, array: jax.ShapeDtypeStruct, sharding: NamedSharding) -> None:
    try:
        sharding.shard_shape(array.shape)
    except ValueError:
        sizes = ", ".join(f"{name}={size}" for name, size in sharding.mesh.shape.items())
        raise InputError(
            f"mesh {sizes}: cannot split {path_of(path)} of shape {array.shape} by {sharding.spec}; give other sizes"
        ) from None
