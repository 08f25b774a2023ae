"""Runs the cases of one part of the GPU kit in this process and reports each as it ends.

    python worker.py < REQUEST.json       # started by runner.py

One JSON object a line on standard output: ``cases`` (all names), then ``begin`` and ``end`` of each. Whatever libraries
print goes to standard error.
"""

import dataclasses
import faulthandler
import gc
import importlib
import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

# Kept of an error's traceback: enough to find the line when the machine is gone.
_TRACEBACK_CHARACTERS = 3000


class Skip(Exception):
    """Raised by a case that this machine cannot run; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What the cases depend on.

    Attributes:
      tiny: small shapes for a machine without a GPU.
      extra: ``FILE.py:FUNCTION``, an attention implementation from outside the package, or None.
    """

    tiny: bool
    extra: str | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
      name: unique in its part.
      run: returns the fields of its row; ``status`` among them only if it ran and the result is wrong ("failed").
      group: cases that fail together, such as those of one implementation.
    """

    name: str
    run: Callable[[], dict[str, Any]]
    group: str = ""


class Module(Protocol):
    """A part's module."""

    def cases(self, request: Request) -> Sequence[Case]:
        """Returns the cases, the most important first."""
        ...


def run_case(case: Case) -> dict[str, Any]:
    """Returns the row of a case: its fields, ``status`` (ok, failed, skipped or error), ``seconds``, ``reason``."""
    began = time.perf_counter()
    try:
        row = {"status": "ok"} | case.run()
    except Skip as skip:
        row = {"status": "skipped", "reason": str(skip)}
    except Exception as error:  # whatever a compiler, driver or library raises is this case's result
        lines = str(error).strip().splitlines() or [""]
        row = {
            "status": "error",
            "reason": f"{type(error).__name__}: {lines[0][:300]}",
            "traceback": traceback.format_exc()[-_TRACEBACK_CHARACTERS:],
        }
    return row | {"seconds": round(time.perf_counter() - began, 2)}


def digits(x: float, count: int = 3) -> float | None:
    """Returns ``x`` rounded to ``count`` digits; None where it is not finite, which JSON cannot say."""
    return float(f"{x:.{count}g}") if math.isfinite(x) else None


def times_row(name: str, batch: int, length: int, job: str, median: Mapping[str, float]) -> dict[str, Any]:
    """Returns the row of one attention's times.

    Args:
      median: seconds of a call of ``ours``, of ``plain`` attention, and of a ``dispatch`` that computes nothing.
    """
    return {
        "name": name,
        "shape": f"{batch}x{length}",
        "job": job,
        "dtype": "bfloat16",
        "milliseconds": digits(1e3 * median["ours"]),
        "over plain": digits(median["ours"] / median["plain"]),
        "dispatch milliseconds": digits(1e3 * median["dispatch"]),
    }


def device_works() -> bool:
    """False where an error before has left the device unusable for this process, as an illegal address does."""
    try:
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
            sys.modules["torch"].ones(8, device="cuda").sum().item()
        if "jax" in sys.modules:
            import jax

            jax.block_until_ready(jax.numpy.ones(8) + 1)
    except Exception:  # of any kind: then a new process goes on
        return False
    return True


def main() -> None:
    faulthandler.enable()
    # Sent by runner.py before it stops a process that hangs.
    faulthandler.register(signal.SIGUSR1)
    # Events have a copy of standard output to themselves.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    say = lambda **event: print(json.dumps(event), file=events, flush=True)
    request = json.load(sys.stdin)
    module: Module = importlib.import_module(request["module"])  # pyright: ignore[reportAssignmentType]
    cases = module.cases(Request(request["tiny"], request["extra"]))
    say(cases=[[case.name, case.group] for case in cases])
    done = set(request["done"])
    for case in cases:
        if case.name in done:
            continue
        say(begin=case.name)
        row = run_case(case)
        gc.collect()  # arrays of the case before it are not part of the next one's memory
        say(end=case.name, row=row)
        if row["status"] == "error" and not device_works():
            say(restart="the device does not work any more in this process")
            return


if __name__ == "__main__":
    # The parts' modules import this one by its name.
    sys.modules["worker"] = sys.modules["__main__"]
    main()
