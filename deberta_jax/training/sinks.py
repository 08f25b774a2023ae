"""Sends a run's figures to TensorBoard and Weights & Biases; each needs an extra of the package."""

from collections.abc import Mapping
from typing import Any

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.training.experiment import RunOptions
from deberta_jax.training.logging import Sink


class TensorBoard:
    """Writes event files to ``directory``."""

    def __init__(self, directory: storage.AnyPath):
        try:
            from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise InputError("--tensorboard: needs an extra; pip install 'deberta_jax[tensorboard]'") from None
        self.writer = SummaryWriter(str(directory))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes the figures of a step."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        self.writer.close()


class Wandb:
    """Logs to a run of a Weights & Biases project; a resumed run keeps its id."""

    def __init__(self, project: str, name: str, identity: str, record: Mapping[str, Any]):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise InputError("--wandb: needs an extra; pip install 'deberta_jax[wandb]'") from None
        self.run = wandb.init(project=project, name=name, id=identity, resume="allow", config=dict(record))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Logs the figures of a step."""
        self.run.log(dict(figures), step=step)

    def close(self) -> None:
        """Ends the run."""
        self.run.finish()


def make_sinks(r: RunOptions, directory: storage.AnyPath, identity: str, record: Mapping[str, Any]) -> tuple[Sink, ...]:
    """Returns the sinks that the run's options ask for. Raises InputError where an extra is not installed."""
    sinks: list[Sink] = []
    if r.tensorboard:
        sinks.append(TensorBoard(directory / "tensorboard"))
    if r.wandb:
        sinks.append(Wandb(r.wandb, directory.name, identity, record))
    return tuple(sinks)
