"""What a run tells while it goes: a progress bar, log.jsonl, and a picture of the curves."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import matplotlib.figure
import numpy as np
from tqdm import tqdm


class RunLog:
    """Progress of a run of ``total`` steps in ``directory``.

    log.jsonl has one object a line: ``{"step", "loss", "learning_rate", "gradient_norm", "tokens_per_second"}`` every
    ``every`` steps, means since the line before, and ``{"step", "eval": {...}}`` after each evaluation. Lines beyond
    ``start``, of steps that an interrupted run took after its last saved state, are dropped.
    """

    def __init__(self, directory: Path, total: int, start: int, every: int, learning_rate: Callable[[int], Any]):
        self.path = directory / "log.jsonl"
        self.every = every
        self.learning_rate = learning_rate
        self.entries = _read_entries(self.path, start)
        self.path.write_text("".join(json.dumps(entry) + "\n" for entry in self.entries), encoding="utf-8")
        self.bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, file=sys.stderr, mininterval=0.5)
        self.pending: list[dict[str, jax.Array]] = []
        self.tokens = 0
        self.clock = time.perf_counter()

    def step(self, step: int, metrics: dict[str, jax.Array], tokens: int) -> None:
        """Records a step; raises FloatingPointError if the loss since the last line is not finite."""
        self.pending.append(metrics)
        self.tokens += tokens
        self.bar.update()
        if step % self.every and step != self.bar.total:
            return
        means = {name: float(np.mean([float(m[name]) for m in self.pending])) for name in metrics}
        rate = self.tokens / (time.perf_counter() - self.clock)
        self.restart_clock()
        if not np.isfinite(means["loss"]):
            raise FloatingPointError(
                f"the loss is {means['loss']} by step {step}: the run has diverged; lower --learning-rate or lengthen "
                "--warmup. The last saved state is from before"
            )
        self.bar.set_postfix(loss=f"{means['loss']:.4f}", tokens_per_s=f"{rate:,.0f}", refresh=False)
        learning_rate = float(self.learning_rate(step - 1))
        self._write({"step": step, **means, "learning_rate": learning_rate, "tokens_per_second": round(rate, 1)})

    def restart_clock(self) -> None:
        """Begins a new window of measurement, for instance after an evaluation."""
        self.pending, self.tokens, self.clock = [], 0, time.perf_counter()

    def evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        self._write({"step": step, "eval": metrics})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if value is not None)
        self.say(f"step {step}: {shown}")

    def say(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()

    def _write(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def draw(self, path: Path, metric: str) -> None:
        """A PNG of the training loss and, if there were evaluations, of their loss and chosen metric."""
        steps = [e for e in self.entries if "loss" in e]
        evals = [e for e in self.entries if "eval" in e]
        figure = matplotlib.figure.Figure(figsize=(8, 4.5), layout="constrained")
        left = figure.add_subplot()
        left.plot([e["step"] for e in steps], [e["loss"] for e in steps], color="tab:blue", label="training loss")
        left.plot(
            [e["step"] for e in evals],
            [e["eval"]["loss"] for e in evals],
            "o--",
            color="tab:cyan",
            label="evaluation loss",
        )
        left.set_xlabel("step")
        left.set_ylabel("loss")
        lines = left.get_lines()
        if metric != "loss":
            right = left.twinx()
            values = [np.nan if e["eval"][metric] is None else e["eval"][metric] for e in evals]
            lines = [*lines, *right.plot([e["step"] for e in evals], values, "s-", color="tab:orange", label=metric)]
            right.set_ylabel(metric)
        left.legend(lines, [str(line.get_label()) for line in lines], loc="best")
        left.grid(alpha=0.3)
        figure.savefig(path, dpi=120)


def _read_entries(path: Path, start: int) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            break  # a line cut short by a kill; its step comes again
        # The evaluation at the very step of the saved state may or may not be repeated; the loop records it anew.
        if entry["step"] <= start:
            entries.append(entry)
    return entries
