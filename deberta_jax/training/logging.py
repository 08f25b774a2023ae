"""Reports a run while it trains: a progress bar, log.jsonl, a plot of the curves, and other sinks."""

import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from tqdm import tqdm

from deberta_jax import storage
from deberta_jax.data.batches import Size
from deberta_jax.progress import progress_bar
from deberta_jax.training.finite import ADVICE, NotFinite
from deberta_jax.training.plots import write_curves

_log = logging.getLogger(__name__)

# Names of the figures that differ between two runs of the same experiment.
TIMES = ("tokens_per_second", "examples_per_second", "mfu", "peak_memory")


@runtime_checkable
class Sink(Protocol):
    """Receives a run's figures."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Takes the figures of a step."""
        ...

    def close(self) -> None:
        """Finishes what was written."""
        ...


class RunLog:
    """Logs a run of ``total`` steps to ``directory``.

    log.jsonl has one object a line. Every ``every`` steps: ``step``, ``learning_rate``, the means since the last line
    of ``loss``, ``gradient_norm`` and ``padding``, and the speed since then: ``tokens_per_second`` without padding,
    ``examples_per_second``, and ``mfu`` and ``peak_memory`` where they are known. After each evaluation:
    ``{"step", "eval": {...}}``. In a bucket, whose objects cannot be appended to, ``flush`` writes the lines.

    Args:
      learning_rate: the schedule.
      start: step at which the run starts or continues. Lines of later steps, which an interrupted run wrote after its
        last saved state, are removed, for those steps are taken again.
      evaluated: last step with an evaluation; lines of later evaluations are removed.
      pending: the measurements since the last line, as ``unwritten`` returned them.
      flops: FLOPs of a batch of a size.
      peak: FLOP/s of the devices.
      writer: True for the one process that writes.
      sinks: where figures go as well.
    """

    def __init__(
        self,
        directory: storage.AnyPath,
        total: int,
        every: int,
        learning_rate: Callable[[int], Any],
        *,
        start: int = 0,
        evaluated: int = -1,
        pending: Sequence[Mapping[str, float]] = (),
        flops: Callable[[Size], float] | None = None,
        peak: float | None = None,
        writer: bool = True,
        sinks: Sequence[Sink] = (),
    ):
        self.path = directory / "log.jsonl"
        self.every = every
        self.learning_rate = learning_rate
        self.flops, self.peak, self.writer, self.sinks = flops, peak, writer, sinks
        self.entries, self.flushed = _read_entries(self.path, start, evaluated), True
        if writer:
            storage.write_json_lines(self.path, self.entries)
        self.bar = progress_bar(
            total=total,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5,
            disable=not writer,
        )
        self.total = total
        self.pending: list[Mapping[str, jax.Array | float]] = list(pending)
        self.restart_clock()

    def step(self, step: int, metrics: dict[str, jax.Array], size: Size) -> None:
        """Records a step.

        Raises:
          FloatingPointError: a measurement since the last line is not finite.
        """
        self.pending.append({**metrics, "padding": 1 - size.tokens / size.token_slots})
        self.tokens += size.tokens
        self.examples += size.examples
        self.work += self.flops(size) if self.flops is not None else 0.0
        self.bar.update()
        if step % self.every and step != self.total:
            return
        pending = self.unwritten(step)
        means = {name: float(np.mean([m[name] for m in pending])) for name in (*metrics, "padding")}
        speed = self._speed()
        self.pending = []
        self.restart_clock()
        self.bar.set_postfix(
            loss=f"{means['loss']:.4f}", tokens_per_s=f"{speed['tokens_per_second']:,.0f}", refresh=False
        )
        learning_rate = float(self.learning_rate(step - 1))
        self._write({"step": step, **means, "learning_rate": learning_rate, **speed})

    def _speed(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.clock
        out = {
            "tokens_per_second": round(self.tokens / seconds, 1),
            "examples_per_second": round(self.examples / seconds, 2),
        }
        if self.peak and self.flops is not None:
            out["mfu"] = round(self.work / seconds / self.peak, 4)
        memory = jax.local_devices()[0].memory_stats()
        if memory and "peak_bytes_in_use" in memory:
            out["peak_memory"] = memory["peak_bytes_in_use"]
        return out

    def unwritten(self, step: int) -> list[dict[str, float]]:
        """Returns the measurements since the last line, to be saved with the state of this step.

        Raises:
          FloatingPointError: one of them is not finite, so that the state is not worth saving.
        """
        pending = [{name: float(value) for name, value in m.items()} for m in self.pending]
        for i, m in enumerate(pending):
            for name, value in m.items():
                if not math.isfinite(value):
                    raise NotFinite(
                        f"the {name.replace('_', ' ')} is {value} by step {step}: {ADVICE}",
                        step - len(pending) + i,
                    )
        return pending

    def restart_clock(self) -> None:
        """Starts to measure speed again, for instance after an evaluation."""
        self.tokens, self.examples, self.work, self.clock = 0, 0, 0.0, time.perf_counter()

    def evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        """Records an evaluation, and shows it."""
        self._write({"step": step, "eval": metrics})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if value is not None)
        if self.writer:
            tqdm.write(f"step {step}: {shown}", file=sys.stderr)

    def flush(self) -> None:
        """Writes the lines that are kept in memory. Raises as ``storage.write_json_lines``."""
        if not self.flushed:
            storage.write_json_lines(self.path, self.entries)
            self.flushed = True

    def close(self) -> None:
        """Writes what ``flush`` does, and closes the progress bar and the sinks."""
        self.bar.close()
        self.flush()
        for sink in self.sinks:
            sink.close()

    def _write(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        if not self.writer:
            return
        if storage.is_remote(self.path):
            self.flushed = False
        else:
            storage.append_json_line(self.path, entry)
        flat = {f"eval/{k}": v for k, v in entry["eval"].items()} if "eval" in entry else dict(entry)
        figures = {name: value for name, value in flat.items() if value is not None and name != "step"}
        for sink in self.sinks:
            sink.write(entry["step"], figures)

    def draw(self, path: storage.AnyPath, metric: str) -> None:
        """Writes the curves as a PNG, or logs why it cannot."""
        if self.writer:
            write_curves(path, self.entries, metric)


def _read_entries(path: storage.AnyPath, start: int, evaluated: int) -> list[dict[str, Any]]:
    """Returns the entries of a log up to the steps that a run continues from.

    A line that a kill cut short is left out; its step is taken again. Of a log that is damaged before its end the lines
    up to the damage are returned, and the file is kept under another name.

    Raises:
      InputError: the log cannot be read.
    """
    entries = [entry for entry in storage.read_json_lines(path) if _is_entry(entry)]
    lines = storage.read_bytes(path, storage.LOG).splitlines() if path.is_file() else []
    if len(lines) > len(entries) + 1:
        kept = path.with_name(f"{path.name}.damaged")
        storage.write_bytes(kept, storage.read_bytes(path, storage.LOG))
        _log.warning("%s: is damaged after line %d; the whole file is kept as %s", path, len(entries), kept.name)
    return [entry for entry in entries if entry["step"] <= (evaluated if "eval" in entry else start)]


def _is_entry(entry: dict[str, Any]) -> bool:
    """Returns whether an object has the form of a line of the log."""
    numbers = entry.get("eval", {name: value for name, value in entry.items() if name != "eval"})
    is_number = lambda value: value is None or type(value) in (int, float)
    return type(entry.get("step")) is int and isinstance(numbers, dict) and all(map(is_number, numbers.values()))
