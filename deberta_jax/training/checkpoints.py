"""States of a run on disk, by Orbax: written beside the training, whole or not at all, restored onto any mesh."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from deberta_jax import storage
from deberta_jax.errors import InputError, brief
from deberta_jax.training.state import TrainState


class Checkpoints:
    """The states of one run in ``directory``; the latest ``keep`` are kept.

    A state is the arrays of TrainState and a small JSON record of the loop: the run's identity, what has been
    evaluated, the best so far, the place in the data.
    """

    def __init__(self, directory: Path, keep: int = 1):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self.directory = directory.absolute()
        self.manager = ocp.CheckpointManager(self.directory, options=options)

    def latest(self) -> int | None:
        """The step of the latest complete state; None if there is none."""
        return self.manager.latest_step()

    def save(self, step: int, state: TrainState, record: dict[str, Any]) -> None:
        """Starts writing; returns when the arrays may change. Does nothing if this step is there already.

        Raises:
          InputError: a state could not be written, this one or the one before; the last complete one is intact.
        """
        if step in self.manager.all_steps():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))  # pyright: ignore
        try:
            self.manager.save(step, args=items)
        except (OSError, ValueError) as error:
            raise self._cannot(error) from error

    def _cannot(self, error: Exception) -> InputError:
        why = storage.explain(error) if isinstance(error, OSError) else brief(" ".join(str(error).split()), 200)
        latest = self.latest()
        kept = "no complete one is there" if latest is None else f"the last complete one is of step {latest}"
        return InputError(
            f"{self.directory}: a state could not be written ({why}); {kept}. Make room, and run the same command again"
        )

    def restore(self, step: int, like: TrainState, shardings: Any) -> tuple[TrainState, dict[str, Any]]:
        """A state placed by ``shardings``, whatever devices it was saved from. ``like`` gives shapes and dtypes."""
        target = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), like, shardings)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), record=ocp.args.JsonRestore())  # pyright: ignore
        found = self.manager.restore(step, args=items)
        return found["state"], found["record"]

    def close(self) -> None:
        """Waits until everything is written. Raises InputError as ``save``."""
        try:
            self.manager.wait_until_finished()
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError, ValueError):  # it would say the same again
                self.manager.close()
            raise self._cannot(error) from error
        self.manager.close()
