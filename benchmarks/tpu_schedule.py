"""Reads what the TPU compiler writes about a program that it compiles: the operations and the schedule of its kernels.

libtpu reads its options once, when it is loaded. Each program is therefore compiled in a process of its own, with
options that make the compiler write its intermediate programs into a folder. No TPU is needed, and none was used.
"""

import collections
import dataclasses
import functools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from deberta_jax.planning.hlo import HloProgram, parse_hlo

ROOT = Path(__file__).parents[1]
DELAY_SLOTS = 4  # cycles that follow a branch before it takes effect


def compile_with_dump(function: str, folder: Path, **arguments: Any) -> None:
    """Compiles a program in another process; the compiler writes its intermediate programs into ``folder``.

    Args:
      function: name of a function of ``benchmarks.tpu_aot`` that returns a compiled program.
      folder: an empty folder. It also receives the optimised program, as ``program.hlo``.
      **arguments: of the function, as JSON has them.

    Raises:
      RuntimeError: the program does not compile; the message ends with the last lines of the process.
    """
    mosaic = folder / "mosaic"
    mosaic.mkdir(parents=True)
    options = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_mosaic_dump_to={mosaic}"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tpu_schedule", function, json.dumps(arguments), str(folder)],
        cwd=ROOT,
        env=os.environ | {"LIBTPU_INIT_ARGS": options, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = "\n".join(done.stderr.splitlines()[-12:])
        raise RuntimeError(f"{function} of {arguments} does not compile:\n{last}")


def count_operations(folder: Path) -> dict[str, dict[str, int]]:
    """Returns for each Pallas kernel of a program how often each operation of Mosaic's dialect occurs, by their names.

    Counts the kernels as they reach Mosaic, before it divides their arrays into registers.
    """
    counts = {}
    for file in sorted((folder / "mosaic").glob("*-post-deserialization.txt")):
        text = file.read_text()
        kernel = re.search(r"func\.func @(\w+)", text)
        assert kernel is not None, file
        counts[kernel[1]] = dict(collections.Counter(re.findall(r"= (tpu\.\w+)", text)))
    return counts


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Holds the compiler's static schedule of one kernel.

    Cycles are those of one program of the kernel's grid. They contain latencies, but neither waits for memory nor bank
    conflicts. Of two alternatives the longer one counts: near blocks, not far ones. Every other conditional part
    counts, although the first or the last program alone may execute it.

    Attributes:
      programs: programs of the grid.
      cycles: of a program.
      shorter_cycles: of a program, if of each two alternatives the shorter one counts.
      empty: cycles in which nothing is issued.
      units: the cycles that each unit needs, if nothing else held it up, by its name.
    """

    programs: int
    cycles: int
    shorter_cycles: int
    empty: int
    units: dict[str, int]

    @property
    def binding_unit(self) -> str:
        """Returns the unit that needs most cycles."""
        return max(self.units, key=lambda name: self.units[name])


def read_schedule(folder: Path, kernel: str) -> Schedule:
    """Returns the schedule of a kernel, given its name in the optimised program.

    Each line of ``packed-bundles-post-ra`` is one cycle, and empty lines are latency that the compiler could not fill.
    The lines of ``pre-delay_hlo-static-per-bundle-utilization`` are the same cycles with their use of each unit.
    """
    bundles = _bundles(_dumped(folder, kernel, "packed-bundles-post-ra"))
    _, names, capacities, _, *lines = _dumped(folder, kernel, "pre-delay_hlo-static-per-bundle-utilization")
    used = [[int(n) for n in line.split()] for line in lines if line.strip()]
    assert len(used) == len(bundles), (kernel, len(used), len(bundles))
    programs, weights, shorter_cycles = _weights(bundles)
    units = {
        name.strip(): math.ceil(sum(w * row[k] for w, row in zip(weights, used, strict=True)) / int(capacity))
        for k, (name, capacity) in enumerate(zip(names.split(","), capacities.split(), strict=True))
    }
    empty = sum(w for w, text in zip(weights, bundles, strict=True) if not text.strip(" {}"))
    return Schedule(programs, sum(weights), shorter_cycles, empty, units)


def _dumped(folder: Path, kernel: str, stage: str) -> list[str]:
    name = re.compile(rf"\d+-{re.escape(kernel)}-\d+-{stage}\.txt")
    (file,) = (file for file in folder.iterdir() if name.fullmatch(file.name))
    return file.read_text().splitlines()


def _bundles(lines: list[str]) -> list[str]:
    """Returns the instructions of each cycle, without address, tag and comments."""
    found = (re.match(r" *(?:0x[0-9a-f]+|\d+) +(?:LB|LH|LE|PB|PF|CT)? *: ?>* ?(\{.*)", line) for line in lines)
    return [re.sub(r"/\*.*?\*/", "", match[1]) for match in found if match]


def _weights(bundles: list[str]) -> tuple[int, list[int], int]:
    """Returns the number of programs, how often one executes each cycle of the listing, and its ``shorter_cycles``."""
    branches = [
        (at, int(match[2]), match[1])
        for at, text in enumerate(bundles)
        if (match := re.search(r"sbr\.rel \((!?%\w+)\) target bundleno = (\d+)", text))
    ]
    loops = [(target, at + DELAY_SLOTS, _trips(bundles, target, at, p)) for at, target, p in branches if target <= at]
    outer = max(loops, key=lambda loop: loop[1] - loop[0])
    weights = [int(outer[0] <= at <= outer[1]) for at in range(len(bundles))]
    for first, last, trips in loops:
        if (first, last) != outer[:2]:
            weights[first : last + 1] = [w * trips for w in weights[first : last + 1]]
    alternatives = _alternatives(branches)
    all_cycles, of_part = sum(weights), lambda part: sum(weights[part[0] : part[1]])
    shorter_cycles = all_cycles - sum(of_part(longer) for _, longer in alternatives)
    for (first, last), _ in alternatives:
        weights[first:last] = [0] * (last - first)
    return outer[2] - 2, weights, shorter_cycles  # the first and the last turn only start and await transfers


def _trips(bundles: list[str], first: int, last: int, predicate: str) -> int:
    """Returns how often a loop runs whose last branch depends on ``predicate``: counted from 0 up to a constant."""
    text = "\n".join(bundles[first : last + 1])
    test = re.search(rf"{predicate.lstrip('!')} = scmp\.ge\.s32\.totalorder (%\w+), (\d+)", text)
    assert test is not None, (first, last, predicate)
    step = re.search(rf"{test[1]} = sadd\.s32 (\d+), %", text)
    assert step is not None, (first, last, test[0])
    return -(-int(test[2]) // int(step[1]))


def _alternatives(branches: list[tuple[int, int, str]]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Returns each two neighbouring parts that depend on one predicate in opposite ways, the shorter one first."""
    skipped = [(at + DELAY_SLOTS + 1, target, p) for at, target, p in branches if target > at]
    found = []
    for first, end, p in skipped:
        for other, other_end, q in skipped:
            if 0 <= other - end <= 2 * DELAY_SLOTS and {p, q} == {p.lstrip("!"), f"!{p.lstrip('!')}"}:
                found.append(tuple(sorted(((first, end), (other, other_end)), key=lambda part: part[1] - part[0])))
    return found


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """Reads a program that ``compile_with_dump`` has compiled.

    Attributes:
      folder: what the compiler has written.
    """

    folder: Path

    @functools.cached_property
    def hlo(self) -> HloProgram:
        """Returns the optimised program."""
        return parse_hlo((self.folder / "program.hlo").read_text())

    @functools.cached_property
    def kernels(self) -> dict[str, tuple[Schedule, float]]:
        """Returns for each kernel its schedule and how often it runs."""
        calls = ((i, times) for _, i, times in self.hlo.executed() if 'custom_call_target="tpu_custom_call"' in i.rest)
        return {i.name: (read_schedule(self.folder, i.name), times) for i, times in calls}

    @property
    def other_cycles(self) -> float:
        """Returns the cycles that the compiler estimates for everything but the kernels."""
        estimates = ((times, re.search(r'"estimated_cycles":"(\d+)"', i.rest)) for _, i, times in self.hlo.executed())
        return sum(times * int(estimate[1]) for times, estimate in estimates if estimate)


def main() -> None:
    """Compiles one program in this process: ``tpu_schedule.py FUNCTION ARGUMENTS FOLDER``."""
    from benchmarks import tpu_aot

    function, arguments, folder = sys.argv[1:]
    compiled = getattr(tpu_aot, function)(**json.loads(arguments))
    (Path(folder) / "program.hlo").write_text(compiled.as_text())


if __name__ == "__main__":
    main()
