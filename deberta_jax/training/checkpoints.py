"""Saves and restores states of a run with Orbax: in the background, whole or not at all, onto any mesh."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from deberta_jax import storage
from deberta_jax.errors import InputError, brief
from deberta_jax.training.state import TrainState


class Checkpoints:
    """Manages the states of one run in ``directory``, of which the latest ``keep`` are kept.

    A state is the arrays of a TrainState and a small JSON record of the loop: the run's identity, the last evaluation,
    the best metrics so far, the position in the data.
    """

    def __init__(self, directory: Path, keep: int = 1):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self.directory = directory.absolute()
        self.manager = ocp.CheckpointManager(self.directory, options=options)

    def latest(self) -> int | None:
        """Returns the step of the latest complete state; None if there is none."""
        return self.manager.latest_step()

    def save(self, step: int, state: TrainState, record: dict[str, Any]) -> None:
        """Starts to write a state; returns when the arrays may change. Does nothing if this step is saved already.

        Raises:
          InputError: this state or the one before could not be written; the last complete one is intact.
        """
        if step in self.manager.all_steps():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))  # pyright: ignore
        try:
            self.manager.save(step, args=items)
        except (OSError, ValueError) as error:
            raise self._write_error(error) from error

    def _write_error(self, error: Exception) -> InputError:
        why = storage.explain(error) if isinstance(error, OSError) else brief(" ".join(str(error).split()), 200)
        latest = self.latest()
        kept = "no complete one is there" if latest is None else f"the last complete one is of step {latest}"
        return InputError(
            f"{self.directory}: a state could not be written ({why}); {kept}. Make room, and run the same command again"
        )

    def restore(self, step: int, like: TrainState, shardings: Any) -> tuple[TrainState, dict[str, Any]]:
        """Returns a saved state and its record, for any number of devices.

        Args:
          like: a state with the shapes and dtypes.
          shardings: how to shard the arrays.
        """
        target = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), like, shardings)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), record=ocp.args.JsonRestore())  # pyright: ignore
        found = self.manager.restore(step, args=items)
        return found["state"], found["record"]

    def close(self) -> None:
        """Waits until all states are written. Raises InputError as ``save``."""
        try:
            self.manager.wait_until_finished()
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError, ValueError):  # the same error once more
                self.manager.close()
            raise self._write_error(error) from error
        self.manager.close()
