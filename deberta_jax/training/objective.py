"""Describes what a run trains, on which losses, with which optimizers; and makes its step, without data or arrays."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh

from deberta_jax.config import DebertaConfig
from deberta_jax.training.experiment import Optimization
from deberta_jax.training.optimizers import Optimizer, SeparateOptimizers, make_optimizer
from deberta_jax.training.state import Parameters, TrainState, abstract_state, state_shardings
from deberta_jax.training.step import Loss, Phase, Step, StepOptions, make_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Holds parameters, losses and their optimization.

    Attributes:
      configs: configs of the models that every token passes, to count FLOPs.
      parameters: shapes and axes of the parameters.
      initial_params: a function of the tree of shardings that returns the parameters before the first step.
      loss: (params, batch, dropout key) -> terms of the loss; or several phases.
      loss_weights: weight of each term of the loss; 1 where a term is not named.
      optimization: of all parameters; the log reports its learning rate.
      separate: for each top-level part of the tree its own optimization, instead of that.
    """

    configs: tuple[DebertaConfig, ...]
    parameters: Parameters
    initial_params: Callable[[Any], Any]
    loss: Loss | tuple[Phase, ...]
    optimization: Optimization
    loss_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    separate: Mapping[str, Optimization] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PreparedStep:
    """Holds all that compiling needs: the optimizer, the step, the state's shapes and its shardings.

    A run compiles this; planning compiles it for devices that are not there.
    """

    optimizer: Any
    step: Step
    state: TrainState
    shardings: TrainState


def prepare_step(objective: Objective, mesh: Mesh, steps: int, *, accumulate: int = 1) -> PreparedStep:
    """Returns the step of an objective for a run of ``steps`` steps.

    Args:
      mesh: its devices need not be there.
      accumulate: number of micro-batches.
    """
    p, ema = objective.parameters, objective.optimization.ema
    optimizer = _optimizer(objective, steps)
    options = StepOptions(loss_weights=objective.loss_weights, accumulate=accumulate, frozen=p.frozen, ema=ema)
    return PreparedStep(
        optimizer,
        make_step(objective.loss, optimizer, options),
        abstract_state(p, optimizer, mesh, ema=ema),
        state_shardings(p, optimizer, mesh, ema=ema),
    )


def _optimizer(objective: Objective, steps: int) -> Optimizer:
    if objective.separate:
        return SeparateOptimizers({name: make_optimizer(o, steps) for name, o in objective.separate.items()})
    return make_optimizer(objective.optimization, steps)


def masked_batch(
    batch_size: int, length: int, targets: int, layout: Literal["packed", "contiguous"] = "packed"
) -> dict[str, np.ndarray]:
    """Returns a batch of padding with the shapes that pre-training has, to compile the step for.

    Returns:
      ``input_ids`` int32 [B,T]; ``segment_ids`` int32 [B,T] (0: padding) for packed rows, ``attention_mask`` bool [B,T]
      for contiguous ones; ``positions`` (-1: none) and ``labels`` (-100: none) int32 [B,P]; ``draws`` uint32 [B,2].
    """
    tokens, masked = (batch_size, length), (batch_size, targets)
    packed = {"segment_ids": np.zeros(tokens, np.int32)}
    return {
        "input_ids": np.zeros(tokens, np.int32),
        **(packed if layout == "packed" else {"attention_mask": np.zeros(tokens, bool)}),
        "positions": np.full(masked, -1, np.int32),
        "labels": np.full(masked, -100, np.int32),
        "draws": np.zeros((batch_size, 2), np.uint32),
    }
