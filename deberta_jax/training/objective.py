"""What is trained towards what: all that a step is made of, without data, tokenizer or an array existing."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh

from deberta_jax.config import DebertaConfig
from deberta_jax.training.experiment import Optimization
from deberta_jax.training.optimizers import Optimizer, SeparateOptimizers, make_optimizer, rate_scales, split
from deberta_jax.training.state import Parameters, TrainState, abstract_state, state_shardings
from deberta_jax.training.step import Loss, Phase, Step, StepOptions, make_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Parameters, losses and their optimization.

    Attributes:
      configs: of the encoders that every token passes, to count arithmetic with.
      parameters: shapes and axes of what is trained.
      initial_params: called with the tree of shardings, gives parameters placed accordingly.
      loss, factors: (params, batch, dropout key) -> the parts of the loss; what each is multiplied with. Or phases.
      optimization: of everything; its rate is the one that the log tells.
      separate: an optimization of its own for each top-level part of the tree, in place of that.
    """

    configs: tuple[DebertaConfig, ...]
    parameters: Parameters
    initial_params: Callable[[Any], Any]
    loss: Loss | tuple[Phase, ...]
    optimization: Optimization
    factors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    separate: Mapping[str, Optimization] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An objective's optimizer and step, and the shapes and places of its state: all that compiling needs.

    This is what a run compiles, and what may be compiled for devices that are not there.
    """

    optimizer: Any
    step: Step
    state: TrainState
    shardings: TrainState


def prepare(objective: Objective, mesh: Mesh, steps: int, *, accumulate: int = 1) -> Prepared:
    """The step of an objective, for a run of so many steps on a mesh whose devices need not be there."""
    p, ema = objective.parameters, objective.optimization.ema
    optimizer = _optimizer(objective, steps)
    options = StepOptions(factors=objective.factors, accumulate=accumulate, frozen=p.frozen, ema=ema)
    return Prepared(
        optimizer,
        make_step(objective.loss, optimizer, options),
        abstract_state(p, optimizer, mesh, ema=ema),
        state_shardings(p, optimizer, mesh, ema=ema),
    )


def _optimizer(objective: Objective, steps: int) -> Optimizer:
    trained = split(objective.parameters.shapes, objective.parameters.frozen)[0]
    if objective.separate:
        return SeparateOptimizers(
            {name: make_optimizer(o, steps, rate_scales(o, trained[name])) for name, o in objective.separate.items()}
        )
    o = objective.optimization
    return make_optimizer(o, steps, rate_scales(o, trained))


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
