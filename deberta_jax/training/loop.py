"""The loop that every job runs: place, compile, resume, step, evaluate, keep the best, save, stop in order."""

import dataclasses
import json
import logging
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from deberta_jax.data.batches import read_ahead
from deberta_jax.errors import InputError
from deberta_jax.models import Model
from deberta_jax.sharding import global_batch
from deberta_jax.training.checkpoints import Checkpoints
from deberta_jax.training.experiment import Optimization, Runtime, difference
from deberta_jax.training.logging import RunLog
from deberta_jax.training.optimizers import make_optimizer, schedule
from deberta_jax.training.state import make_state, state_shardings
from deberta_jax.training.step import ItemLoss, compile_step, make_step

_log = logging.getLogger(__name__)

Metrics = Mapping[str, float | None]


@runtime_checkable
class Batches(Protocol):
    """Batches by step, and one example of every shape among them."""

    def __len__(self) -> int: ...
    def __getitem__(self, step: int, /) -> dict[str, np.ndarray]: ...
    def examples(self) -> Iterator[dict[str, np.ndarray]]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What to train, and what to do with it.

    Attributes:
      directory, record: of the run; ``record`` is the resolved experiment that is saved there.
      initial_params: called with the tree of shardings, gives parameters placed accordingly.
      item_loss: (params, batch, dropout key) -> loss and weight of every item.
      evaluate: (params, tick) -> metrics, ``loss`` among them; calls ``tick`` now and then.
      metric: the one that chooses the best parameters; the highest, or of ``loss`` the lowest.
      save_best: writes parameters as the run's model directory.
      eval_every: steps from one evaluation to the next; the last step is always evaluated.
      evaluate_first: evaluate before the first step as well.
    """

    directory: Path
    record: dict[str, Any]
    model: Model
    mesh: Mesh
    optimization: Optimization
    runtime: Runtime
    seed: int
    initial_params: Callable[[Any], Any]
    item_loss: ItemLoss
    batches: Batches
    evaluate: Callable[[Any, Callable[[], None]], Metrics]
    metric: str
    save_best: Callable[[Any], None]
    eval_every: int
    evaluate_first: bool = False


@dataclasses.dataclass(frozen=True)
class Result:
    """``metrics`` of the best checkpoint and the ``step`` it is from; ``stopped`` is the signal that ended the run
    before its last step, or None."""

    step: int
    metrics: Metrics
    stopped: signal.Signals | None = None


def check_directory(directory: Path, record: dict[str, Any]) -> Result | None:
    """Whether a run may write here. None: begin, or go on where it stopped; a Result: it has already finished.

    Raises:
      InputError: the directory holds something else, or another run.
    """
    if not directory.exists():
        _check_parent(directory)
        return None
    if not directory.is_dir():
        raise InputError(f"--output {directory}: is a file; give a directory")
    saved = directory / "experiment.json"
    # A run killed at its very start leaves no more than the beginning of that file.
    if all(path == _partial(saved) for path in directory.iterdir()):
        return None
    if not saved.is_file():
        raise InputError(f"--output {directory}: is not empty and holds no run; give another directory")
    try:
        theirs = json.loads(saved.read_text(encoding="utf-8"))
    except ValueError:
        theirs = None
    if not isinstance(theirs, dict) or "job" not in theirs:
        raise InputError(f"--output {directory}: its experiment.json is not a run's; give another directory")
    why = difference(record, theirs)
    if why is not None:
        raise InputError(f"--output {directory}: holds another run ({why}); give another directory or delete it")
    finished = directory / "result.json"
    if finished.is_file():
        result = json.loads(finished.read_text(encoding="utf-8"))
        return Result(result["step"], result["metrics"])
    return None


def _check_parent(directory: Path) -> None:
    parent = next(path for path in directory.absolute().parents if path.exists())
    if not parent.is_dir():
        raise InputError(f"--output {directory}: {parent} is a file; give another directory")
    if not os.access(parent, os.W_OK):
        raise InputError(f"--output {directory}: {parent} cannot be written to; give another directory")


def fit(job: Job) -> Result:
    """Trains to the last step, or until SIGTERM or SIGINT, after which the same call goes on from where it was.

    Raises:
      FloatingPointError: the loss is no longer finite.
    """
    total = len(job.batches)

    # Where everything lives, and one compiled program per batch shape.
    optimizer = make_optimizer(job.optimization, total)
    shardings = state_shardings(job.model, optimizer, job.mesh)
    params = job.initial_params(shardings.params)
    state = jax.jit(lambda p: make_state(p, optimizer, job.seed), out_shardings=shardings, donate_argnums=0)(params)
    del params
    step_fn = make_step(job.item_loss, optimizer)
    programs = {}
    for example in job.batches.examples():
        _log.info("compiling the step for batches of %s tokens", " x ".join(map(str, example["input_ids"].shape)))
        programs[_shapes(example)] = compile_step(step_fn, state, shardings, example, job.mesh)

    # Resume: the latest complete state, if this run has one.
    job.directory.mkdir(parents=True, exist_ok=True)
    write_json(job.directory / "experiment.json", job.record)
    checkpoints = Checkpoints(job.directory / "state")
    progress: dict[str, Any] = {"evaluated": -1, "best_step": None, "best": None, "unwritten": []}
    step = 0
    latest = checkpoints.latest()
    if latest is not None:
        state, progress = checkpoints.restore(latest, state, shardings)
        step = latest
        _log.info("going on from step %d of %d", step, total)

    log = RunLog(
        job.directory, total, job.runtime.log_every, schedule(job.optimization, total),
        start=step, evaluated=progress["evaluated"], pending=progress["unwritten"],
    )  # fmt: skip

    def save() -> None:
        checkpoints.save(step, state, {**progress, "unwritten": log.unwritten(step)})

    with GracefulStop() as stop:
        try:
            batches = read_ahead(job.batches, step)
            while True:
                due = step % job.eval_every == 0 or step == total
                due = due and (step > 0 or job.evaluate_first)
                if due and progress["evaluated"] != step:
                    log.unwritten(step)  # a run that has diverged is neither evaluated nor saved
                    metrics = dict(job.evaluate(state.params, stop.check))
                    log.evaluation(step, metrics)
                    progress = {**progress, "evaluated": step}
                    if _better(job.metric, metrics, progress["best"]):
                        job.save_best(state.params)
                        progress |= {"best_step": step, "best": metrics}
                    log.draw(job.directory / "curves.png", job.metric)
                    save()
                    log.restart_clock()
                elif step % job.runtime.checkpoint_every == 0 and step > 0:
                    save()
                if step == total:
                    break
                stop.check()
                batch = next(batches)
                program = programs[_shapes(batch)]
                state, measured = program(state, global_batch(batch, job.mesh))
                step += 1
                log.step(step, measured, tokens=int(batch["attention_mask"].sum()))
        except Stopped as stopped:
            save()
            return Result(step, progress["best"] or {}, stopped.signal)
        finally:
            log.close()
            checkpoints.close()
    result = {"step": progress["best_step"], "metrics": progress["best"]}
    write_json(job.directory / "result.json", result)
    return Result(**result)


class Stopped(Exception):
    """A signal asked the run to end."""

    def __init__(self, number: signal.Signals):
        super().__init__(number.name)
        self.signal = number


class GracefulStop:
    """Within the block SIGTERM and SIGINT only set a mark; ``check`` raises Stopped where it is safe to stop."""

    def __enter__(self) -> "GracefulStop":
        self.received: signal.Signals | None = None
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, _) -> None:
        self.received = signal.Signals(number)

    def check(self) -> None:
        if self.received is not None:
            raise Stopped(self.received)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file in one rename."""
    partial = _partial(path)
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _shapes(batch: Mapping[str, np.ndarray]) -> tuple:
    return tuple((name, batch[name].shape[1:]) for name in sorted(batch))


def _better(metric: str, ours: Metrics, best: Metrics | None) -> bool:
    if best is None:
        return True
    sign = -1 if metric == "loss" else 1
    value = lambda m: -math.inf if m[metric] is None else sign * m[metric]
    return value(ours) > value(best)
