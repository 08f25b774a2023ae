"""Saves and restores states of a run with Orbax: in the background, whole or not at all, onto any mesh.

The digests of a state's files are listed in its ``checksums.json`` in the background as well, after Orbax has written
the last file. A state is compared with them, in full, before it is restored. In a bucket, which compares the digests of
what it receives and returns by itself, there is no such list.
"""

import contextlib
import gc
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from etils import epath

from deberta_jax import storage
from deberta_jax.errors import InputError, RunAgainError, brief
from deberta_jax.training.distributed import any_process, is_writer, wait_for_all
from deberta_jax.training.state import TrainState
from deberta_jax.weights.orbax_library import ocp

_log = logging.getLogger(__name__)

# Orbax's form of a JSON item is this one file.
_RECORD = "record/metadata"

# Orbax marks a state in a bucket as complete with this object, as nothing can be renamed there.
_MARK = "commit_success.txt"

# What the reason of a failed write has where nothing but a user can change it.
_STAYS = ("no space", "quota", "denied", "not permitted", "read-only", "too large", "not_found", "not found")


class Checkpoints:
    """Manages the states of one run in ``directory``, of which the latest ``keep`` are kept.

    A state is the arrays of a TrainState and a small JSON record of the loop: in runs of the library the run's
    identity, the last evaluation, the best metrics so far and the position in the data. States are written in the
    background: call ``close`` at the end, or use a ``with`` block.

    Raises:
      InputError: the directory cannot be used.
    """

    def __init__(self, directory: str | storage.AnyPath, keep: int = 1):
        remote = storage.is_remote(directory)
        # Objects are removed one by one: see ``_drop_old``.
        options = ocp.CheckpointManagerOptions(max_to_keep=None if remote else keep, create=True)
        self._keep = keep if remote else 0
        self.directory: storage.AnyPath = storage.as_path(directory) if remote else Path(directory).absolute()
        self._background: threading.Thread | None = None
        self._failed: BaseException | None = None
        # Orbax logs each error of a thread with several tracebacks before it raises the error.
        logging.getLogger("absl").addFilter(_is_not_of_orbax)
        self._late = _LateErrors()
        try:
            self.manager = self._open(options)
        except BaseException:
            logging.getLogger("absl").removeFilter(_is_not_of_orbax)
            self._late.show_again()
            raise

    def _open(self, options: ocp.CheckpointManagerOptions, *, again: bool = False) -> ocp.CheckpointManager:
        """Opens the directory with Orbax, which reads the metadata of all states; damaged ones are set aside first."""
        try:
            return ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise InputError(storage.explain(error)) from None
        except Exception as error:  # Orbax raises many types for damaged metadata
            steps = [int(path.name) for path in self.directory.iterdir() if path.name.isdecimal() and path.is_dir()]
            found = {step: storage.find_damage(self.directory / str(step)) for step in steps}
            damaged = {step: why for step, why in found.items() if why is not None}
            if again or not damaged or len(damaged) == len(found) or jax.process_count() > 1:
                why = f"step {max(damaged)}: {damaged[max(damaged)]}" if damaged else brief(error, 200)
                raise InputError(
                    f"{self.directory}: the metadata of a state is damaged ({why}); delete that state to go on from an "
                    f"older one, or {self.directory} to train from the first step again"
                ) from None
            self._set_aside(damaged, max(found.keys() - damaged.keys()))
            return self._open(options, again=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def latest(self) -> int | None:
        """Returns the step of the latest complete state; None if there is none."""
        return self.manager.latest_step()

    def save(self, step: int, state: TrainState, record: dict[str, Any] | None = None) -> None:
        """Starts to write a state; returns when the arrays may change. Does nothing if this step is saved already.

        Args:
          step: the number of steps taken, ``state.step``.
          record: what the loop needs besides, as JSON.

        Raises:
          InputError: this state or the one before could not be written; the last complete one is intact.
          RunAgainError: so, for a reason that may be over when the same command is run again.
        """
        if step in self.manager.all_steps():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record or {}))  # pyright: ignore
        with self._writing():
            self._wait()
            self._drop_old()
            self.manager.save(step, args=items)
        self._background = threading.Thread(target=self._list_digests, args=(step,), name=f"digests of state {step}")
        self._background.start()

    def save_record(self, step: int, record: dict[str, Any]) -> None:
        """Replaces the record of a saved state in the background, once the state is written.

        A process that is killed meanwhile leaves the old record or the new one.

        Raises:
          InputError, RunAgainError: as ``save``.
        """
        if step not in self.manager.all_steps():
            return
        with self._writing():
            self._wait()
        self._background = threading.Thread(
            target=self._list_digests, args=(step, record), name=f"record of state {step}"
        )
        self._background.start()

    def discard(self, step: int) -> None:
        """Deletes the state of a step, if it is there. All processes must call."""
        with self._writing():
            self._wait()
            if step in self.manager.all_steps():
                self.manager.delete(step)

    def _list_digests(self, step: int, record: dict[str, Any] | None = None) -> None:
        """Waits for Orbax, then lists the digests of a state's files. Runs in a thread, which ``_wait`` waits for.

        Args:
          record: written first in place of the state's own.
        """
        try:
            self.manager.wait_until_finished()
            directory = self.directory / str(step)
            if is_writer():
                if record is not None:
                    # A state without a list is used; one that differs from its list is not.
                    storage.remove(directory / storage.CHECKSUMS)
                    storage.write_json(directory / _RECORD, record)
                if isinstance(directory, Path):
                    storage.write_checksums(directory)
        except BaseException as error:
            self._failed = error

    def _drop_old(self) -> None:
        """Removes the states of a bucket that are not kept. All processes must call.

        The object that marks a state as complete is removed first, so that no reader takes a part for a state.
        """
        for step in sorted(self.manager.all_steps())[: -self._keep] if self._keep else ():
            if is_writer():
                storage.remove(self.directory / str(step) / _MARK)
            self.manager.delete(step)

    def _wait(self) -> None:
        """Waits until the last state is written. Raises the error that prevented it."""
        if self._background is not None:
            self._background.join()
            self._background = None
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Converts errors of writing inside the block to a one-line InputError or RunAgainError."""
        try:
            yield
        except RunAgainError as error:
            raise RunAgainError(f"{self.directory}: a state could not be written ({error})") from error
        except (OSError, ValueError) as error:
            why = storage.explain(error) if isinstance(error, OSError) else brief(error, 200)
            latest = self.latest()
            kept = "no complete one is there" if latest is None else f"the last complete one is of step {latest}"
            said = f"{self.directory}: a state could not be written ({why}); {kept}"
            if isinstance(error, OSError) and error.errno is not None:
                passes = storage.may_pass(error)
            else:
                passes = not any(words in str(error).lower() for words in _STAYS)
            if passes:
                raise RunAgainError(f"{said}; run the same command again") from error
            raise InputError(f"{said}. Make room, and run the same command again") from error

    def restore_latest(
        self,
        like: TrainState,
        shardings: Any = None,
        check_record: Callable[[dict[str, Any]], str | None] | None = None,
    ) -> tuple[int, TrainState, dict[str, Any]] | None:
        """Restores the latest state that is not damaged. All processes must call.

        Newer states, which are damaged, are renamed to ``STEP.damaged``, and a warning is logged.

        Args:
          like, shardings: as for ``restore``.
          check_record: returns what is wrong with a record of the loop; None if nothing is. None: any is right.

        Returns:
          Its step, the state and its record; None if there are no states.

        Raises:
          InputError: all states are damaged.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                self._compare(step)
                state, record = self.restore(step, like, shardings)
                wrong = None if check_record is None else check_record(record)
                if wrong is not None:
                    raise InputError(f"its record is damaged: {wrong}")
                taken = int(state.step.addressable_data(0))
                if taken != step:
                    raise InputError(f"it holds the state of step {taken}; the directory was renamed")
            except InputError as error:
                damaged[step] = str(error).removeprefix(f"{self.directory / str(step)}: ")
                continue
            if damaged:
                self._set_aside(damaged, step)
                self.manager.reload()
            return step, state, record
        if damaged:
            why = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
            older = "there is no older one" if len(damaged) == 1 else "the older ones are so too"
            raise InputError(
                f"{self.directory}: the state of step {max(damaged)} is damaged, and {older} ({why}). Delete "
                f"{self.directory} to train from the first step again; a state without its {storage.CHECKSUMS} is used "
                "if it can be read"
            )
        return None

    def _compare(self, step: int) -> None:
        """Compares a state with the digests of its files; the writer does so for all processes.

        Raises:
          InputError: in every process, if a file is damaged.
        """
        directory, why = self.directory / str(step), None
        if is_writer():
            try:
                why = storage.find_damage(directory)
                if isinstance(directory, Path) and not (directory / storage.CHECKSUMS).is_file():
                    _log.info("%s: no %s there; its files are not compared", directory, storage.CHECKSUMS)
            except InputError as error:
                why = str(error)
        if any_process(why is not None):
            raise InputError(f"{directory}: {why or 'see the message of process 0'}")

    def _set_aside(self, damaged: dict[int, str], usable: int) -> None:
        """Renames the directories of damaged states, so that their steps can be saved again."""
        for step, why in damaged.items():
            directory = self.directory / str(step)
            aside = directory.with_name(f"{step}.damaged")
            _log.warning(
                "%s: damaged (%s); going on from the older state of step %d. The damaged one is now %s, delete it",
                directory,
                why,
                usable,
                aside.name,
            )
            if is_writer():
                try:
                    storage.remove(aside)  # an earlier one
                    storage.rename(directory, aside)
                except OSError as error:
                    raise InputError(storage.explain(error)) from None
        wait_for_all("damaged states")

    def restore(self, step: int, like: TrainState, shardings: Any = None) -> tuple[TrainState, dict[str, Any]]:
        """Returns a saved state and its record, for any number of devices.

        Args:
          like: a state with the shapes and dtypes; its arrays are not read.
          shardings: how to shard the arrays; None: as those of ``like`` are.

        Raises:
          InputError: the state is damaged, or its arrays have other shapes or dtypes.
        """
        shardings = jax.tree.map(lambda array: array.sharding, like) if shardings is None else shardings
        target = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), like, shardings)
        directory = self.directory / str(step)
        self.manager.wait_until_finished()  # a state that is still being written
        record = storage.read_json_object(directory / _RECORD)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target))  # pyright: ignore
        try:
            with _without_unraisable():
                _check_arrays(directory / "state", like)
                return self.manager.restore(step, args=items)["state"], record
        except (InputError, MemoryError, jax.errors.JaxRuntimeError):  # JAX raises the last for memory of a device
            raise
        except Exception as error:  # Orbax and TensorStore raise many types for damaged files
            raise InputError(f"{directory}: cannot be restored ({brief(error, 200)})") from None

    def close(self) -> None:
        """Waits until all states are written. Raises InputError and RunAgainError as ``save``."""
        try:
            with self._writing():
                self._wait()
                self.manager.wait_until_finished()
                self._drop_old()
        except BaseException:
            with contextlib.suppress(OSError, ValueError):  # the same error once more
                self.manager.close()
            raise  # late errors stay hidden: writes beside the failed one may still end
        else:
            self.manager.close()
            self._late.show_again()
        finally:
            logging.getLogger("absl").removeFilter(_is_not_of_orbax)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


class _LateErrors:
    """Hides the errors of writes that end after one beside them has failed, and closed their event loop.

    TensorStore reports each from a thread of its own, some releases as an error that no code catches, others as one
    that cannot be raised; Python prints a traceback for both. The failure itself is raised.
    """

    def __init__(self) -> None:
        self._before = sys.excepthook, sys.unraisablehook
        self._ours = self._uncaught, self._unraisable
        sys.excepthook, sys.unraisablehook = self._ours

    def show_again(self) -> None:
        if sys.excepthook is self._ours[0]:
            sys.excepthook = self._before[0]
        if sys.unraisablehook is self._ours[1]:
            sys.unraisablehook = self._before[1]

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not _is_late(error) or threading.current_thread() is threading.main_thread():
            self._before[0](kind, error, trace)

    def _unraisable(self, told: Any) -> None:
        if not _is_late(told.exc_value):
            self._before[1](told)


def _is_late(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


@contextlib.contextmanager
def _without_unraisable() -> Iterator[None]:
    """Ignores errors of coroutines that Orbax abandons when another one fails; the failure itself is raised.

    Python prints a traceback for each abandoned one when it is deleted.
    """
    before = sys.unraisablehook
    try:
        yield
    except BaseException:
        sys.unraisablehook = lambda _: None
        raise
    finally:
        if sys.unraisablehook is not before:
            gc.collect()
            sys.unraisablehook = before


def _check_arrays(directory: storage.AnyPath, like: TrainState) -> None:
    """Checks shapes and dtypes of the saved arrays; Orbax would convert dtypes without a word.

    Raises:
      InputError: an array has another shape or dtype. Missing arrays are left to Orbax.
    """
    tree = ocp.PyTreeCheckpointHandler().metadata(epath.Path(directory)).tree
    saved, expected = _leaves(tree), _leaves(like)
    for name in sorted(expected.keys() & saved.keys()):
        here, there = (f"{np.dtype(leaf.dtype)} {list(leaf.shape)}" for leaf in (expected[name], saved[name]))
        if here != there:
            raise InputError(f"{directory.parent}: {brief(name)} is {there}, this run has {here}")


def _leaves(tree: Any) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}
