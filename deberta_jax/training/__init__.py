"""Trains models: complete runs in one call, and the building blocks of a training loop of one's own.

Complete runs: ``finetune(Finetune(...))`` and ``pretrain(PretrainMLM(...))``; ``describe_finetune`` says what one would
be, ``sweep`` runs a grid of settings and seeds, and ``compare`` compares runs.

A loop of one's own takes batches (``batches``, ``read_ahead``), an optimizer (``adamw``, ``learning_rate_schedule``),
a state (``init_state``, ``parameter_shardings``), a step (``train_step``), and ``Checkpoints``. The library's runs use
the same functions. Names are imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

from deberta_jax.lazy import load_name

if TYPE_CHECKING:
    from deberta_jax.data.batches import TrainingBatches, batches
    from deberta_jax.data.prefetch import read_ahead
    from deberta_jax.inference.predict import model_inputs
    from deberta_jax.training.checkpoints import Checkpoints
    from deberta_jax.training.comparison import Comparison, compare
    from deberta_jax.training.directory import Result
    from deberta_jax.training.distillation_options import Distillation
    from deberta_jax.training.dry_run import describe_finetune
    from deberta_jax.training.experiment import Finetune, Optimization, PretrainMLM, PretrainRTD, RunOptions
    from deberta_jax.training.finetuning import finetune
    from deberta_jax.training.optimizers import adamw, decay_mask, learning_rate_schedule, rate_scales
    from deberta_jax.training.pretraining import pretrain
    from deberta_jax.training.state import TrainState, init_optimizer, init_state, parameter_shardings
    from deberta_jax.training.step import train_step
    from deberta_jax.training.sweeps import SweepResult, sweep

_MODULES = {
    "data.batches": ("TrainingBatches", "batches"),
    "data.prefetch": ("read_ahead",),
    "inference.predict": ("model_inputs",),
    "training.checkpoints": ("Checkpoints",),
    "training.comparison": ("Comparison", "compare"),
    "training.directory": ("Result",),
    "training.distillation_options": ("Distillation",),
    "training.dry_run": ("describe_finetune",),
    "training.experiment": ("Finetune", "Optimization", "PretrainMLM", "PretrainRTD", "RunOptions"),
    "training.finetuning": ("finetune",),
    "training.optimizers": ("adamw", "decay_mask", "learning_rate_schedule", "rate_scales"),
    "training.pretraining": ("pretrain",),
    "training.state": ("TrainState", "init_optimizer", "init_state", "parameter_shardings"),
    "training.step": ("train_step",),
    "training.sweeps": ("SweepResult", "sweep"),
}

__all__ = [
    "Checkpoints",
    "Comparison",
    "Distillation",
    "Finetune",
    "Optimization",
    "PretrainMLM",
    "PretrainRTD",
    "Result",
    "RunOptions",
    "SweepResult",
    "TrainState",
    "TrainingBatches",
    "adamw",
    "batches",
    "compare",
    "decay_mask",
    "describe_finetune",
    "finetune",
    "init_optimizer",
    "init_state",
    "learning_rate_schedule",
    "model_inputs",
    "parameter_shardings",
    "pretrain",
    "rate_scales",
    "read_ahead",
    "sweep",
    "train_step",
]


if not TYPE_CHECKING:  # a type checker would give every misspelt name the type Any

    def __getattr__(name: str) -> Any:
        return load_name(__name__, name, _MODULES)


def __dir__() -> list[str]:
    return __all__
