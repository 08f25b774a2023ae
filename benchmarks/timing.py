"""How the benchmarks take time: calls in turn, in a process that keeps its memory.

Import it before the first computation, whose threads would else have pools of their own.
"""

import ctypes
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

PAUSE = 0.5  # seconds before a call, in which the threads of the library called before it stop looking for work


def keep_memory() -> None:
    """Freed memory stays with the process, whichever library freed it, and one pool serves all threads.

    By default glibc hands every large array back to the kernel and asks for it anew, a fault each 4 KiB. What those
    cost depends on the machine and on who ran before (a virtual machine may have given the pages to its host), which
    changed ratios between libraries from one run to the next by half. Without glibc this does nothing, and says so.
    """
    try:
        settings = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_ARENA_MAX": (-8, 1)}
        kept = all(ctypes.CDLL(None).mallopt(*setting) for setting in settings.values())
    except (AttributeError, OSError, TypeError):
        kept = False
    if not kept:
        print("timing: the allocator is not glibc's; page faults are part of what is timed", file=sys.stderr)


def seconds(run: Callable[[], Any], pause: float = PAUSE) -> float:
    """Of one call."""
    time.sleep(pause)
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def in_turn(runs: Mapping[str, Callable[[], Any]], rounds: int, pause: float = PAUSE) -> dict[str, float]:
    """Median seconds of each, all called once a round; a round before the first touches their memory, untimed."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, pause))
    return {name: statistics.median(values) for name, values in times.items()}


def seconds_per_call(
    calls: Mapping[str, Callable[[], Any]], wait: Callable[[Any], Any], rounds: int, run_seconds: float = 0.02
) -> dict[str, float]:
    """Median seconds of a call of each, in turn, on a device that works while the host goes on.

    A timed run is as many calls as take about ``run_seconds``, up to 200, and then ``wait`` for the last one's result.
    """

    def repeat(call: Callable[[], Any], times: int) -> None:
        for _ in range(times):
            result = call()
        wait(result)

    times = {}
    for name, call in calls.items():
        once = lambda call=call: repeat(call, 1)
        once()
        times[name] = min(200, math.ceil(run_seconds / min(seconds(once, pause=0) for _ in range(2))))
    runs = {name: lambda call=call, n=times[name]: repeat(call, n) for name, call in calls.items()}
    return {name: value / times[name] for name, value in in_turn(runs, rounds, pause=0).items()}


keep_memory()
