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
from deberta_jax.training.optimizers import join, split
from deberta_jax.training.state import TrainState

Batch = dict[str, jax.Array]
# (params, batch, dropout key) -> for each part of the loss, its items and their weights
Loss = Callable[[Any, Batch, jax.Array], Mapping[str, Items]]
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepOptions:
    """``factors``: of each part of the loss, 1 where not named. ``accumulate``: micro-batches. ``frozen``, ``ema``: as
    the state was made with."""

    factors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    accumulate: int = 1
    frozen: frozenset[str] = frozenset()
    ema: float = 0.0


def make_step(loss: Loss, optimizer: optax.GradientTransformation, options: StepOptions = StepOptions()) -> Step:
    """The step: the gradient of the sum of the parts' means over items of weight above 0, clipped, applied.

    Returns a function of (state, batch) to (state, {loss, gradient_norm, and the parts where there are several}); its
    dropout key is a function of the run's rng and the step alone. A mean is over the whole batch, however many
    micro-batches it is computed in.
    """
    o = options

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        trained, rest = split(state.params, o.frozen)
        of_trained: Loss = lambda p, part, k: loss(join(p, rest), part, k)
        parts, gradient = _gradient(of_trained, o, trained, batch, key)
        updates, opt_state = optimizer.update(gradient, state.opt_state, trained)
        params = join(optax.apply_updates(trained, updates), rest)
        mean = jax.tree.map(lambda m, p: o.ema * m + (1 - o.ema) * p, state.mean, params) if o.ema else state.mean
        total = sum(o.factors.get(name, 1.0) * value for name, value in parts.items())
        metrics = {"loss": total, "gradient_norm": optax.tree.norm(gradient)} | (parts if len(parts) > 1 else {})
        return TrainState(state.step + jnp.int32(1), params, opt_state, state.rng, mean), metrics

    return step


def _gradient(loss: Loss, o: StepOptions, params: Any, batch: Batch, key: jax.Array) -> tuple[dict, Any]:
    """The mean of each part over the batch, and the gradient of their sum."""

    def means(p, part, key, weights):
        terms = loss(p, part, key)
        if weights is None:
            weights = {name: jnp.sum(weight) for name, (_, weight) in terms.items()}
        found = {
            name: jnp.sum(weight * value) / jnp.maximum(weights[name], 1.0)
            for name, (value, weight) in terms.items()
        }  # fmt: skip
        return sum(o.factors.get(name, 1.0) * value for name, value in found.items()), found

    gradient_of = jax.value_and_grad(means, has_aux=True)
    if o.accumulate == 1:
        (_, found), gradient = gradient_of(params, batch, key, None)
        return found, gradient
    # Weights follow from the batch alone, so the compiler drops the rest of this first pass.
    weights = {name: jnp.sum(weight) for name, (_, weight) in loss(params, batch, key).items()}
    micro = jax.tree.map(lambda a: _micro_batches(a, o.accumulate), batch)

    def add(carry, xs):
        part, index = xs
        (_, found), gradient = gradient_of(params, part, jax.random.fold_in(key, index), weights)
        return jax.tree.map(jnp.add, carry, (found, gradient)), None

    zero = ({name: jnp.zeros(()) for name in weights}, jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, zero, (micro, jnp.arange(o.accumulate)))[0]


def _micro_batches(array: jax.Array, count: int) -> jax.Array:
    """[rows, ...] -> [count, rows / count, ...]: micro-batch i has rows i, i+count, ..., so devices keep their own."""
    return jnp.swapaxes(array.reshape(-1, count, *array.shape[1:]), 0, 1)


def compile_step(step: Step, state: Any, shardings: TrainState, example: Mapping[str, Any], mesh: Mesh) -> Any:
    """The step compiled for the shapes of ``example``; the state's buffers are reused for the new state.

    ``state`` and ``example`` may be abstract: nothing is computed.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    batch = {name: batch_sharding(mesh) for name in example}
    jitted = jax.jit(step, in_shardings=(shardings, batch), out_shardings=(shardings, everywhere), donate_argnums=0)
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in example.items()}
    with jax.set_mesh(mesh):
        return jitted.lower(state, shapes).compile()
