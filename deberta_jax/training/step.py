"""One optimizer step as a pure function, compiled ahead for every batch shape of the run."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deberta_jax.ops.losses import Items
from deberta_jax.sharding import batch_sharding
from deberta_jax.training.optimizers import Optimizer, join, split
from deberta_jax.training.state import TrainState

Batch = dict[str, jax.Array]
# (params, batch, dropout key) -> for each part of the loss, its items and their weights
Loss = Callable[[Any, Batch, jax.Array], Mapping[str, Items]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """One of several updates that a step makes in turn, each of what those before it have left.

    ``trains``: the top-level names of the tree that it updates; () all. ``gives``: entries of what its loss returns
    that are no parts of it but arrays, a row an example, which later phases find in their batch.
    """

    loss: Callable[[Any, Batch, jax.Array], Mapping[str, Any]]
    trains: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()


Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepOptions:
    """``factors``: of each part of the loss, 1 where not named. ``accumulate``: micro-batches. ``frozen``, ``ema``: as
    the state was made with."""

    factors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    accumulate: int = 1
    frozen: frozenset[str] = frozenset()
    ema: float = 0.0


def make_step(loss: Loss | tuple[Phase, ...], optimizer: Optimizer, options: StepOptions = StepOptions()) -> Step:
    """The step: the gradient of the sum of the parts' means over items of weight above 0, clipped, applied; where the
    loss is several phases, so in turn for each.

    Returns a function of (state, batch) to (state, {loss, gradient_norm, and the parts where there are several}); its
    dropout key is a function of the run's rng and the step alone. A mean is over the whole batch, however many
    micro-batches it is computed in.
    """
    o = options
    phases = loss if isinstance(loss, tuple) else (Phase(loss=loss),)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        trained, rest = split(state.params, o.frozen)
        opt_state, parts, squares = state.opt_state, {}, []
        for i, phase in enumerate(phases):
            mine = {name: trained[name] for name in phase.trains or trained}
            others = {name: value for name, value in trained.items() if name not in mine}
            of_mine = lambda p, part, k, phase=phase, fixed=(others, rest): phase.loss(
                join(join(p, fixed[0]), fixed[1]), part, k
            )
            phase_key = key if i == 0 else jax.random.fold_in(key, i)
            found, given, gradient = _gradient(of_mine, phase.gives, o, mine, batch, phase_key)
            updates, opt_state = optimizer.update(gradient, opt_state, mine)
            moved: Any = optax.apply_updates(mine, updates)
            trained = others | moved
            batch, parts = batch | given, parts | found
            squares.append(optax.tree.norm(gradient, squared=True))
        params = join(trained, rest)
        mean = jax.tree.map(lambda m, p: m + (1 - o.ema) * (p - m), state.mean, params) if o.ema else state.mean
        total = sum(o.factors.get(name, 1.0) * value for name, value in parts.items())
        metrics = {"loss": total, "gradient_norm": jnp.sqrt(sum(squares))} | (parts if len(parts) > 1 else {})
        return TrainState(state.step + jnp.int32(1), params, opt_state, state.rng, mean), metrics

    return step


def _gradient(loss: Any, gives: tuple[str, ...], o: StepOptions, params: Any, batch: Batch, key: jax.Array):
    """The mean of each part over the batch, what the phase gives beside them, and the gradient of the parts' sum."""

    def means(p, part, key, weights):
        terms = dict(loss(p, part, key))
        given = {name: terms.pop(name) for name in gives}
        if weights is None:
            weights = {name: jnp.sum(weight) for name, (_, weight) in terms.items()}
        found = {
            name: jnp.sum(weight * value) / jnp.maximum(weights[name], 1.0) for name, (value, weight) in terms.items()
        }
        return sum(o.factors.get(name, 1.0) * value for name, value in found.items()), (found, given)

    gradient_of = jax.value_and_grad(means, has_aux=True)
    if o.accumulate == 1:
        (_, (found, given)), gradient = gradient_of(params, batch, key, None)
        return found, given, gradient
    # Weights follow from the batch alone, so the compiler drops the rest of this first pass.
    terms = {name: term for name, term in loss(params, batch, key).items() if name not in gives}
    weights = {name: jnp.sum(weight) for name, (_, weight) in terms.items()}
    micro = jax.tree.map(lambda a: _micro_batches(a, o.accumulate), batch)

    def add(carry, xs):
        part, index = xs
        (_, (found, given)), gradient = gradient_of(params, part, jax.random.fold_in(key, index), weights)
        return jax.tree.map(jnp.add, carry, (found, gradient)), given

    zero = ({name: jnp.zeros(()) for name in weights}, jax.tree.map(jnp.zeros_like, params))
    (found, gradient), given = jax.lax.scan(add, zero, (micro, jnp.arange(o.accumulate)))
    return found, jax.tree.map(_whole_batch, given), gradient


def _micro_batches(array: jax.Array, count: int) -> jax.Array:
    """[rows, ...] -> [count, rows / count, ...]: micro-batch i has rows i, i+count, ..., so devices keep their own."""
    return jnp.swapaxes(array.reshape(-1, count, *array.shape[1:]), 0, 1)


def _whole_batch(array: jax.Array) -> jax.Array:
    """What ``_micro_batches`` took apart."""
    return jnp.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])


def jit_step(step: Step, shardings: TrainState, example: Mapping[str, Any], mesh: Mesh) -> tuple[Any, dict[str, Any]]:
    """The step to be lowered, where a mesh is set, for the state's shapes and the batch's, which are the second part;
    the state's buffers are reused for the new state."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    batch = {name: batch_sharding(mesh) for name in example}
    jitted = jax.jit(step, in_shardings=(shardings, batch), out_shardings=(shardings, everywhere), donate_argnums=0)
    return jitted, {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in example.items()}


def compile_step(step: Step, state: Any, shardings: TrainState, example: Mapping[str, Any], mesh: Mesh) -> Any:
    """The step compiled for the shapes of ``example``.

    ``state`` and ``example`` may be abstract: nothing is computed.
    """
    jitted, shapes = jit_step(step, shardings, example, mesh)
    with jax.set_mesh(mesh):
        return jitted.lower(state, shapes).compile()
