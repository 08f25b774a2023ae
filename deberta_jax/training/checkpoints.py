"""States of a run on disk, by Orbax: written beside the training, whole or not at all, restored onto any mesh."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from deberta_jax.training.state import TrainState


class Checkpoints:
    """The states of one run in ``directory``; only the latest is kept.

    A state is the arrays of TrainState and a small JSON record of the loop: what has been evaluated, the best so far.
    """

    def __init__(self, directory: Path):
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
        self.manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def latest(self) -> int | None:
        """The step of the latest complete state; None if there is none."""
        return self.manager.latest_step()

    def save(self, step: int, state: TrainState, record: dict[str, Any]) -> None:
        """Starts writing; returns when the arrays may change. Does nothing if this step is there already."""
        if step in self.manager.all_steps():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))  # pyright: ignore
        self.manager.save(step, args=items)

    def restore(self, step: int, like: TrainState, shardings: Any) -> tuple[TrainState, dict[str, Any]]:
        """A state placed by ``shardings``, whatever devices it was saved from. ``like`` gives shapes and dtypes."""
        target = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), like, shardings)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), record=ocp.args.JsonRestore())  # pyright: ignore
        found = self.manager.restore(step, args=items)
        return found["state"], found["record"]

    def close(self) -> None:
        """Waits until everything is written."""
        self.manager.wait_until_finished()
        self.manager.close()
