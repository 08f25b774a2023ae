"""Other places for a run's figures, each by an extra of the package: TensorBoard and Weights & Biases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deberta_jax.errors import InputError
from deberta_jax.training.experiment import Runtime
from deberta_jax.training.logging import Sink


class TensorBoard:
    """Event files in ``directory``."""

    def __init__(self, directory: Path):
        try:
            from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise InputError("--tensorboard: needs an extra; pip install 'deberta_jax[tensorboard]'") from None
        self.writer = SummaryWriter(str(directory))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of a project of Weights & Biases; goes on under the same id."""

    def __init__(self, project: str, name: str, identity: str, record: Mapping[str, Any]):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise InputError("--wandb: needs an extra; pip install 'deberta_jax[wandb]'") from None
        self.run = wandb.init(project=project, name=name, id=identity, resume="allow", config=dict(record))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=step)

    def close(self) -> None:
        self.run.finish()


def make_sinks(r: Runtime, directory: Path, identity: str, record: Mapping[str, Any]) -> tuple[Sink, ...]:
    """Those that the runtime asks for. Raises InputError where an extra is not installed."""
    sinks: list[Sink] = []
    if r.tensorboard:
        sinks.append(TensorBoard(directory / "tensorboard"))
    if r.wandb:
        sinks.append(Wandb(r.wandb, directory.name, identity, record))
    return tuple(sinks)
