"""Runs the training loop of every job: compile, restore, step, evaluate, keep the best, save, stop in order."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from deberta_jax import storage
from deberta_jax.compilation import use_compilation_cache
from deberta_jax.data.batches import Size
from deberta_jax.data.prefetch import read_ahead
from deberta_jax.errors import InputError
from deberta_jax.sharding import global_batch, row_share
from deberta_jax.tasks import Metrics
from deberta_jax.training.checkpoints import Checkpoints
from deberta_jax.training.directory import Result, check_directory, incomplete_model, lost_model, record_problem
from deberta_jax.training.distributed import (
    GracefulStop,
    Stopped,
    alone_in,
    any_process,
    check_shared,
    is_writer,
    leave_behind,
    wait_for_all,
)
from deberta_jax.training.experiment import RunOptions, fingerprint
from deberta_jax.training.finite import NotFinite, ParameterCheck, check_metrics
from deberta_jax.training.flops import peak_flops, step_flops
from deberta_jax.training.logging import RunLog
from deberta_jax.training.objective import Objective, PreparedStep, prepare_step
from deberta_jax.training.optimizers import learning_rate_schedule, warmup_steps
from deberta_jax.training.report import complete_report, write_report
from deberta_jax.training.sessions import SessionLog
from deberta_jax.training.sinks import make_sinks
from deberta_jax.training.state import TrainState, init_state
from deberta_jax.training.step import compile_step

_log = logging.getLogger(__name__)


@runtime_checkable
class Batches(Protocol):
    """Gives a run's batches by step."""

    def __len__(self) -> int:
        """Returns the number of steps."""
        ...

    def __getitem__(self, step: int, /) -> dict[str, np.ndarray]:
        """Returns this process's rows of a batch."""
        ...

    def size(self, step: int, /) -> Size:
        """Returns the size of a batch over all processes."""
        ...

    def position(self, step: int, /) -> int:
        """Returns the number, over all epochs, of the example that a step begins with."""
        ...

    def examples(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields one batch of all processes for every shape."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Holds what to train, on which batches, and how to evaluate and save it.

    Attributes:
      directory: the run's directory.
      record: the resolved experiment, which is saved there.
      evaluate: (params, tick) -> metrics with ``loss`` among them; calls ``tick`` now and then.
      metric: chooses the best parameters: those with the highest value, for ``loss`` the lowest. None: the latest.
      save_best: writes parameters as the run's model directory.
      eval_every: steps from one evaluation to the next; the last step is always evaluated.
      evaluate_first: whether to evaluate before the first step as well.
    """

    directory: storage.AnyPath
    record: dict[str, Any]
    objective: Objective
    mesh: Mesh
    runtime: RunOptions
    seed: int
    batches: Batches
    evaluate: Callable[[Any, Callable[[], None]], Metrics]
    metric: str | None
    save_best: Callable[[Any], None]
    eval_every: int
    evaluate_first: bool = False


def prepare_job(job: Job) -> PreparedStep:
    """Returns the step of a job, not compiled yet. Warns of a warm-up that is as long as the run or longer."""
    o, steps = job.objective.optimization, len(job.batches)
    up = warmup_steps(o.warmup, steps)
    if up >= steps and is_writer():
        _log.warning(
            "--warmup %g: the warm-up has %d steps and the run %d, so the learning rate only rises, to %.3g of %.3g",
            *(o.warmup, up, steps, o.learning_rate * (steps - 1) / up, o.learning_rate),
        )
    return prepare_step(job.objective, job.mesh, len(job.batches), accumulate=job.runtime.accumulate)


def run_job(directory: storage.AnyPath, record: Mapping[str, Any], make_job: Callable[[], Job]) -> Result:
    """Starts or continues the run in a directory; for one that has finished, returns its result.

    Args:
      record: the resolved experiment.
      make_job: called once the directory is locked.

    Raises:
      InputError: as ``check_directory``; the processes do not see the same directory; or the cache of compiled
        programs cannot be used.
      FloatingPointError: as ``fit``.
    """
    use_compilation_cache(record["runtime"]["compile_cache"])
    finished = check_directory(directory, record)
    # No process writes there before all have looked.
    check_shared(directory, finished is None)
    if finished:
        if is_writer():
            complete_report(directory, record)
        return finished
    with alone_in(directory):
        return fit(make_job())


def fit(job: Job) -> Result:
    """Trains to the last step, or until SIGTERM or SIGINT; then the same call continues from where it stopped.

    Raises:
      FloatingPointError: a loss, gradient, parameter or metric is not finite; the batch is saved in the directory.
    """
    return _Run(job).to_end()


class _Run:
    """Runs one session of a job: from where the last one stopped to the end, or to the next stop."""

    def __init__(self, job: Job):
        began = time.perf_counter()
        self.job, self.total = job, len(job.batches)
        self.identity = fingerprint(job.record)
        prepared = prepare_job(job)
        self.check_parameters, self.finite_until = ParameterCheck(job.mesh), -1
        self.progress: dict[str, Any] = {
            "run": self.identity,
            "position": 0,
            "evaluated": -1,
            "best_step": None,
            "best": None,
            "unwritten": [],
        }
        self.step = 0
        states = job.directory / "state"
        # What is read, weights or a state, is read before anything is written or compiled.
        keep = job.runtime.keep_state
        saved = Checkpoints(states, max(keep, 1)) if states.is_dir() and any(states.iterdir()) else None
        self.state = self._restore(saved, prepared) or self._begin(prepared)
        self._compile(prepared)
        if is_writer():
            storage.make_directory(job.directory)
            storage.write_json(job.directory / "experiment.json", job.record | {"hash": self.identity})
        wait_for_all("directory")
        check_shared(job.directory, (job.directory / "experiment.json").is_file())
        self.checkpoints = self._open_checkpoints(saved, states)
        self.saved_step, self.saved_at = self.step or -1, time.perf_counter()
        self.log = self._open_log()
        self.session = SessionLog(job.directory, self.step, self._facts(), began=began, writer=is_writer())

    def _facts(self) -> dict[str, Any]:
        """Returns what sessions.jsonl says of a session besides its steps and times."""
        return {
            "run": self.identity,
            "programs": len(self.programs),
            "compile_seconds": round(self.compile_seconds, 2),
            "devices": jax.device_count(),
            "kind": jax.devices()[0].device_kind,
            "processes": jax.process_count(),
            "mesh": dict(self.job.mesh.shape),
            "jax": jax.__version__,
        }

    def _restore(self, saved: Checkpoints | None, prepared: PreparedStep) -> TrainState | None:
        """Returns the latest state of this run that can be used, and goes to its step; None if there are no states."""
        if saved is None:
            return None
        try:
            found = saved.restore_latest(prepared.state, prepared.shardings, record_problem)
            if found is not None and found[2]["run"] != self.identity:
                raise InputError(f"{saved.directory}: holds the state of another run; delete it")
            if found is None:
                return None
            self.step, state, self.progress = found
            self._complete_best(state)
        except InputError:
            saved.close()
            raise
        _log.info("going on from step %d of %d", self.step, self.total)
        return state

    def _open_checkpoints(self, saved: Checkpoints | None, states: storage.AnyPath) -> Checkpoints | None:
        """Returns the manager of the run's states; None where none are to be saved."""
        keep = self.job.runtime.keep_state
        if keep:
            return saved or Checkpoints(states, keep)
        if saved is not None:
            saved.close()
        _log.info("--keep-state 0: no state is saved; if this run is stopped, it begins again %s", self._beginning())
        return None

    def _beginning(self) -> str:
        return f"at step {self.step}, of the state that is there" if self.step else "at the first step"

    def _complete_best(self, state: TrainState) -> None:
        """Writes the best model again if files of it are missing and the state has its parameters.

        Raises:
          InputError: training is over, and the state is a later one.
        """
        job, best = self.job, self.progress["best_step"]
        if best is None:
            return
        incomplete = incomplete_model(job.directory, job.record) if is_writer() else None
        if not any_process(incomplete is not None):
            return
        incomplete = incomplete or f"{job.directory}: see the message of process 0"
        if best == self.step:
            params = state.ema_params or state.params
            job.evaluate(params, lambda: None)  # its details are saved with the model
            job.save_best(params)
        elif self.step == self.total == self.progress["evaluated"]:
            raise InputError(lost_model(job.directory, incomplete, best, self.step))
        else:
            _log.warning("%s; the next evaluation makes a new best model in place of that of step %d", incomplete, best)
            self.progress |= {"best_step": None, "best": None}

    def _compile(self, prepared: PreparedStep) -> None:
        """Compiles the step for every shape of batch. Nothing is compiled for training after this."""
        job, began = self.job, time.perf_counter()
        self.programs = {}
        for example in job.batches.examples():
            _log.info("compiling the step for batches of %s tokens", " x ".join(map(str, example["input_ids"].shape)))
            self.programs[_shapes(example)] = compile_step(
                prepared.step, prepared.state, prepared.shardings, example, job.mesh
            )
        self.compile_seconds = time.perf_counter() - began
        _log.info("%d programs compiled in %.0f s", len(self.programs), self.compile_seconds)

    def _begin(self, prepared: PreparedStep) -> TrainState:
        o, seed = self.job.objective, self.job.seed
        params = o.initial_params(prepared.shardings.params)
        return init_state(params, prepared.optimizer, seed, frozen=o.parameters.frozen, ema=o.optimization.ema)

    def _open_log(self) -> RunLog:
        job, r, o = self.job, self.job.runtime, self.job.objective.optimization
        length = next(job.batches.examples())["input_ids"].shape[-1]
        return RunLog(
            job.directory,
            self.total,
            r.log_every,
            learning_rate_schedule(o.learning_rate, self.total, warmup=o.warmup, schedule=o.schedule),
            start=self.step,
            evaluated=self.progress["evaluated"],
            pending=self.progress["unwritten"],
            flops=lambda size: sum(step_flops(c, size.token_slots, length) for c in job.objective.configs),
            peak=peak_flops(r.peak_tflops),
            writer=is_writer(),
            sinks=make_sinks(r, job.directory, self.identity, job.record) if is_writer() else (),
        )

    def to_end(self) -> Result:
        job = self.job
        with GracefulStop() as stop, contextlib.ExitStack() as closing:
            # Closed in reverse order, each even if another fails: a full disk must not lose a state.
            closing.callback(lambda: self.session.update(self.step))
            if self.checkpoints is not None:
                closing.callback(self.checkpoints.close)
            closing.callback(self.log.close)
            try:
                batches = read_ahead(job.batches, self.step)
                closing.callback(batches.close)
                while True:
                    self._due(stop)
                    if self.step == self.total:
                        break
                    stop.check()
                    self._take(next(batches))
            except Stopped as stopped:
                self._save()
                return Result(self.step, self.progress["best"] or {}, stopped.signal)
            except jax.errors.JaxRuntimeError as error:
                if jax.process_count() == 1:
                    raise
                leave_behind(error)
            except FloatingPointError as error:
                step = error.step if isinstance(error, NotFinite) else max(self.step - 1, 0)
                raise FloatingPointError(f"{error}; the batch is in {self._keep_batch(step)}") from None
        result = {"step": self.progress["best_step"], "metrics": self.progress["best"]}
        if is_writer():
            storage.write_json(job.directory / "result.json", result)
            write_report(job.directory, job.metric or "loss")
            if self.checkpoints is None:  # states of a session that saved some
                storage.remove(job.directory / "state")
        wait_for_all("result")
        return Result(**result)

    def _take(self, batch: dict[str, np.ndarray]) -> None:
        job = self.job
        program = self.programs.get(_shapes(global_shapes(batch, job)))
        assert program is not None, "a batch of a shape that examples() does not have"
        if self.step in job.runtime.profile[:1]:
            jax.profiler.start_trace(str(job.directory / "profile"))
        began = time.perf_counter()
        self.state, measured = program(self.state, global_batch(batch, job.mesh))
        self.step += 1
        if self.step in (last + 1 for last in job.runtime.profile[1:]):
            jax.block_until_ready(measured)
            jax.profiler.stop_trace()
        self.log.step(self.step, measured, job.batches.size(self.step - 1))
        self.session.trained(time.perf_counter() - began)

    def _due(self, stop: GracefulStop) -> None:
        """Evaluates and saves if it is time to."""
        job = self.job
        due = self.step % job.eval_every == 0 or self.step == self.total
        due = due and (self.step > 0 or job.evaluate_first)
        if due and self.progress["evaluated"] != self.step:
            self._check_finite()  # a run that has diverged is neither evaluated nor saved
            self._save()  # an evaluation may take longer than a preempted machine has left
            self._evaluate(stop)
            self._save()
            self.log.restart_clock()
        elif self.step > 0 and (self.step % job.runtime.checkpoint_every == 0 or self._is_old()):
            self._save()

    def _evaluate(self, stop: GracefulStop) -> None:
        """Evaluates, keeps the best parameters, and records both."""
        job, params = self.job, self.state.ema_params or self.state.params
        try:
            # All processes stop together, between two steps or two batches of an evaluation.
            metrics = dict(job.evaluate(params, stop.check))
            check_metrics(metrics, self.step)
        except FloatingPointError:
            if self.checkpoints is not None:
                self.checkpoints.discard(self.step)  # no state of a run that has diverged is kept
            raise
        self.log.evaluation(self.step, metrics)
        self.progress = {**self.progress, "evaluated": self.step}
        if _better(job.metric, metrics, self.progress["best"]):
            job.save_best(params)
            self.progress |= {"best_step": self.step, "best": metrics}
        self.log.draw(job.directory / "curves.png", job.metric or "loss")

    def _is_old(self) -> bool:
        """Returns whether the last state is older than ``--checkpoint-minutes``, in any process. All must call."""
        r = self.job.runtime
        if not r.checkpoint_minutes or self.step % r.log_every:
            return False
        return any_process(time.perf_counter() - self.saved_at >= 60 * r.checkpoint_minutes)

    def _check_finite(self) -> None:
        """Raises NotFinite if a loss, a gradient or a parameter of the steps so far is not finite."""
        self.log.unwritten(self.step)
        if self.finite_until != self.step:
            self.check_parameters({"params": self.state.params, "ema": self.state.ema_params}, self.step)
            self.finite_until = self.step

    def _save(self) -> None:
        self._check_finite()
        self.log.flush()  # before the state: the lines up to its step are there when a run goes on from it
        self.session.update(self.step)
        if self.checkpoints is None:
            return
        latest = {"position": self.job.batches.position(self.step), "unwritten": self.log.unwritten(self.step)}
        if self.saved_step == self.step:
            self.checkpoints.save_record(self.step, self.progress | latest)
        else:
            self.checkpoints.save(self.step, self.state, self.progress | latest)
            self.saved_step = self.step
        self.saved_at = time.perf_counter()

    def _keep_batch(self, step: int) -> storage.AnyPath:
        """Writes this process's rows of the batch of a step."""
        path = self.job.directory / f"not_finite_step_{step + 1}.npz"
        if is_writer():
            with storage.writing(path) as file:
                np.savez_compressed(file, **self.job.batches[step])  # pyright: ignore[reportArgumentType]
        return path


def global_shapes(batch: Mapping[str, np.ndarray], job: Job) -> dict[str, Any]:
    """Returns the shapes of a batch of all processes, from this process's rows of it."""
    share = row_share(job.mesh)
    whole = lambda a: (a.shape[0] * share.count // len(share.blocks), *a.shape[1:])
    return {name: jax.ShapeDtypeStruct(whole(array), array.dtype) for name, array in batch.items()}


def _shapes(batch: Mapping[str, Any]) -> tuple:
    return tuple((name, tuple(batch[name].shape)) for name in sorted(batch))


def _better(metric: str | None, ours: Metrics, best: Metrics | None) -> bool:
    if best is None or metric is None:
        return True
    sign = -1 if metric == "loss" else 1
    value = lambda m: -math.inf if m[metric] is None else sign * m[metric]
    return value(ours) > value(best)
