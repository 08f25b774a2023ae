"""One optimizer step as a pure function, compiled ahead for every batch shape of the run."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deberta_jax.ops.losses import weighted_mean
from deberta_jax.sharding import batch_sharding
from deberta_jax.training.state import TrainState

Batch = dict[str, jax.Array]
# (params, batch, dropout key) -> the loss of every item and its weight
ItemLoss = Callable[[Any, Batch, jax.Array], tuple[jax.Array, jax.Array]]
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_step(item_loss: ItemLoss, optimizer: optax.GradientTransformation) -> Step:
    """The step: gradient of the mean loss over items of weight above 0, clipped, applied.

    Returns a function of (state, batch) to (state, {loss, gradient_norm}); its dropout key is a function of the run's
    rng and the step alone.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        loss, gradient = jax.value_and_grad(lambda p: weighted_mean(*item_loss(p, batch, key)))(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
        return TrainState(state.step + jnp.int32(1), params, opt_state, state.rng), metrics

    return step


def compile_step(step: Step, state: TrainState, shardings: TrainState, example: Mapping[str, Any], mesh: Mesh) -> Any:
    """The step compiled for the shapes of ``example``; the state's buffers are reused for the new state."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    batch = {name: batch_sharding(mesh) for name in example}
    jitted = jax.jit(step, in_shardings=(shardings, batch), out_shardings=(shardings, everywhere), donate_argnums=0)
    with jax.set_mesh(mesh):
        return jitted.lower(state, example).compile()
