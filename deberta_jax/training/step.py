"""Makes the training step, one optimizer step as a pure function, and compiles it for every batch shape of a run."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deberta_jax.errors import InputError
from deberta_jax.ops.losses import Items
from deberta_jax.sharding import batch_sharding, global_batch
from deberta_jax.training.optimizers import Optimizer, join_trees, split_frozen
from deberta_jax.training.state import TrainState, mesh_of_arrays

Batch = dict[str, jax.Array]
# (params, batch, dropout key) -> for each term of the loss, its items and their weights
Loss = Callable[[Any, Batch, jax.Array], Mapping[str, Items]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """Describes one of several updates that a step makes in turn, each on the parameters that the last one left.

    Attributes:
      loss: as ``Loss``; its result also has the ``outputs``.
      parts: top-level names of the parameter tree that this phase updates; () means all.
      outputs: names of entries of the loss's result that are no terms but arrays, one row an example, which later
        phases find in their batch.
    """

    loss: Callable[[Any, Batch, jax.Array], Mapping[str, Any]]
    parts: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepOptions:
    """Holds how a step is computed.

    Attributes:
      loss_weights: weight of each term of the loss; 1 where a term is not named.
      accumulate: number of micro-batches.
      frozen, ema: as ``make_state`` was called with.
    """

    loss_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    accumulate: int = 1
    frozen: frozenset[str] = frozenset()
    ema: float = 0.0


def make_step(loss: Loss | tuple[Phase, ...], optimizer: Optimizer, options: StepOptions = StepOptions()) -> Step:
    """Returns the step: it computes loss and gradient and updates the parameters; with phases it does so in turn.

    The loss is the weighted sum of its terms, each term the mean of its items over the whole batch, for any number of
    micro-batches.

    Returns:
      A function (state, batch) -> (state, metrics). Metrics are ``loss``, ``gradient_norm`` and, where there are
      several, the terms. The dropout key depends on the run's rng and the step number alone.
    """
    o = options
    phases = loss if isinstance(loss, tuple) else (Phase(loss=loss),)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        trained, rest = split_frozen(state.params, o.frozen)
        opt_state, terms, squares = state.opt_state, {}, []
        for i, phase in enumerate(phases):
            own = {name: trained[name] for name in phase.parts or trained}
            others = {name: value for name, value in trained.items() if name not in own}
            loss_of_own = lambda p, part, k, phase=phase, fixed=(others, rest): phase.loss(
                join_trees(join_trees(p, fixed[0]), fixed[1]), part, k
            )
            phase_key = key if i == 0 else jax.random.fold_in(key, i)
            means, outputs, gradient = _gradient(loss_of_own, phase.outputs, o, own, batch, phase_key)
            updates, opt_state = optimizer.update(gradient, opt_state, own)
            updated: Any = optax.apply_updates(own, updates)
            trained = others | updated
            batch, terms = batch | outputs, terms | means
            squares.append(optax.tree.norm(gradient, squared=True))
        params, ema_params = join_trees(trained, rest), state.ema_params
        if o.ema:
            ema_params = jax.tree.map(functools.partial(_averaged, o.ema), ema_params, params)
        total = sum(o.loss_weights.get(name, 1.0) * value for name, value in terms.items())
        metrics = {"loss": total, "gradient_norm": jnp.sqrt(sum(squares))} | (terms if len(terms) > 1 else {})
        return TrainState(state.step + jnp.int32(1), params, opt_state, state.rng, ema_params), metrics

    return step


def train_step(
    loss: Loss,
    optimizer: Optimizer,
    *,
    loss_weights: Mapping[str, float] | None = None,
    accumulate: int = 1,
    frozen: frozenset[str] = frozenset(),
    ema: float = 0.0,
) -> Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the compiled training step for a loop of one's own. A new shape of batch compiles it again.

    With a state that is sharded over a mesh the batch is split over the mesh's devices, and the new state is sharded as
    the old one. The old state's buffers are donated to the new one.

    Args:
      loss: (params, batch, dropout key) -> for each term of the loss its items and their weights, such as
        ``{"task": losses.cross_entropy(logits, labels)}``.
      optimizer: such as ``adamw`` returns, or any other of optax.
      loss_weights: weight of each term of the loss; 1 where a term is not named.
      accumulate: number of micro-batches that a batch is computed in, one after the other.
      frozen, ema: as ``init_state`` was called with.

    Returns:
      A function (state, batch) -> (state, metrics). The batch is a dict of arrays [B, ...]: of numpy, this process's
      rows, or global arrays. Metrics are float32 scalars: ``loss``, ``gradient_norm`` and, where there are several,
      the terms of the loss.
    """
    options = StepOptions(loss_weights=loss_weights or {}, accumulate=accumulate, frozen=frozen, ema=ema)
    step = make_step(_checked(loss), optimizer, options)
    programs: dict[Any, Any] = {}

    def run(state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, dict[str, jax.Array]]:
        mesh, names = mesh_of_arrays(state.params), tuple(sorted(batch))
        if (mesh, names) not in programs:
            programs[mesh, names] = _jit_for(step, state, batch, mesh)
        if mesh is None:
            return programs[mesh, names](state, dict(batch))
        if not all(isinstance(array, jax.Array) for array in batch.values()):
            batch = global_batch(batch, mesh)
        with jax.set_mesh(mesh):
            return programs[mesh, names](state, dict(batch))

    return run


def _jit_for(step: Step, state: TrainState, batch: Mapping[str, Any], mesh: Mesh | None) -> Any:
    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    return jit_step(step, jax.tree.map(lambda array: array.sharding, state), batch, mesh)[0]


def _checked(loss: Loss) -> Loss:
    """Returns the loss, which raises InputError where its result is not a dict of items and weights."""

    def checked(params: Any, batch: Batch, key: jax.Array) -> Mapping[str, Items]:
        terms: Any = loss(params, batch, key)
        if not isinstance(terms, Mapping) or not all(isinstance(t, tuple) and len(t) == 2 for t in terms.values()):
            raise InputError(
                "train_step: the loss must return a dict of (values, weights) for every term, such as "
                f"{{'task': losses.cross_entropy(logits, labels)}}, not {type(terms).__name__}"
            )
        return terms

    return checked


def _gradient(loss: Any, outputs: tuple[str, ...], o: StepOptions, params: Any, batch: Batch, key: jax.Array):
    """Returns the mean of each term over the batch, the phase's outputs, and the gradient of the weighted sum."""

    def weighted_sum(p, part, key, weights):
        terms = dict(loss(p, part, key))
        given = {name: terms.pop(name) for name in outputs}
        if weights is None:
            weights = {name: jnp.sum(weight) for name, (_, weight) in terms.items()}
        found = {
            name: jnp.sum(weight * value) / jnp.maximum(weights[name], 1.0) for name, (value, weight) in terms.items()
        }
        return sum(o.loss_weights.get(name, 1.0) * value for name, value in found.items()), (found, given)

    gradient_of = jax.value_and_grad(weighted_sum, has_aux=True)
    if o.accumulate == 1:
        (_, (found, given)), gradient = gradient_of(params, batch, key, None)
        return found, given, gradient
    # The weights depend on the batch alone, so the compiler removes the rest of this first pass.
    terms = {name: term for name, term in loss(params, batch, key).items() if name not in outputs}
    weights = {name: jnp.sum(weight) for name, (_, weight) in terms.items()}
    micro = jax.tree.map(lambda a: _micro_batches(a, o.accumulate), batch)

    def add(carry, xs):
        part, index = xs
        (_, (found, given)), gradient = gradient_of(params, part, jax.random.fold_in(key, index), weights)
        return jax.tree.map(jnp.add, carry, (found, gradient)), given

    zero = ({name: jnp.zeros(()) for name in weights}, jax.tree.map(jnp.zeros_like, params))
    (found, gradient), given = jax.lax.scan(add, zero, (micro, jnp.arange(o.accumulate)))
    return found, jax.tree.map(_whole_batch, given), gradient


def _averaged(decay: float, mean: jax.Array, value: jax.Array) -> jax.Array:
    """Returns the moving average of a parameter; codes of frozen quantized ones are not averaged."""
    return mean + (1 - decay) * (value - mean) if jnp.issubdtype(mean.dtype, jnp.floating) else value


def _micro_batches(array: jax.Array, count: int) -> jax.Array:
    """Returns [rows, ...] as [count, rows / count, ...]; micro-batch i has rows i, i+count, ..., so no row moves."""
    return jnp.swapaxes(array.reshape(-1, count, *array.shape[1:]), 0, 1)


def _whole_batch(array: jax.Array) -> jax.Array:
    """Undoes ``_micro_batches``."""
    return jnp.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])


def jit_step(step: Step, shardings: TrainState, example: Mapping[str, Any], mesh: Mesh) -> tuple[Any, dict[str, Any]]:
    """Returns the jitted step, to be lowered where the mesh is set, and the shapes of the batch to lower it for.

    The state's buffers are donated to the new state.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    batch = {name: batch_sharding(mesh) for name in example}
    jitted = jax.jit(step, in_shardings=(shardings, batch), out_shardings=(shardings, everywhere), donate_argnums=0)
    return jitted, {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in example.items()}


def compile_step(step: Step, state: Any, shardings: TrainState, example: Mapping[str, Any], mesh: Mesh) -> Any:
    """Returns the step compiled for the shapes of ``example``. ``state`` and ``example`` may be abstract."""
    jitted, shapes = jit_step(step, shardings, example, mesh)
    with jax.set_mesh(mesh):
        return jitted.lower(state, shapes).compile()
