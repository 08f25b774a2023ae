"""Checks, before a run, what each of its processes has: devices, versions, a mesh, the output directory, a clock."""

import contextlib
import dataclasses
import importlib.metadata
import platform
import secrets
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from deberta_jax import storage
from deberta_jax.errors import InputError, RunAgainError, brief
from deberta_jax.training.distributed import device_reports, differences, exchange, join, reporting
from deberta_jax.training.process_options import ProcessOptions, mesh_of

# Versions that must be alike in all processes. libtpu compiles for TPUs and is found on TPU hosts alone.
PACKAGES = ("jax", "jaxlib", "libtpu", "deberta_jax")
CLOCK_SECONDS = 5.0
"""Largest difference of two clocks in seconds. Credentials of buckets expire by the clock."""
_ROUNDS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreflightOptions(ProcessOptions):
    """Configures a preflight: the processes and the mesh of a run, and its output."""

    output: str = ""
    """Directory or gs:// URL of the run, where each process writes, reads and removes a small file."""


@dataclasses.dataclass(frozen=True)
class Preflight:
    """Holds what the processes of a run reported.

    Attributes:
      processes: a report of each process. Those that could not be exchanged have only ``devices`` and ``kind``.
      mesh: sizes of the axes of the mesh; None if the options do not fit the devices.
      problems: what somebody must change, one line each.
      passing: what may be over when the same command is run again.
    """

    processes: list[dict[str, Any]]
    mesh: dict[str, int] | None
    problems: list[str]
    passing: list[str]

    def to_json(self) -> dict[str, Any]:
        """Returns the reports and what is wrong, for JSON."""
        found = [*self.problems, *self.passing]
        rows = [{"process": i, **report} for i, report in enumerate(self.processes)]
        return {"passed": not found, "processes": rows, "mesh": self.mesh, "problems": found}

    def text(self) -> str:
        """Returns a table with a row for each process, and lines about the mesh and what is wrong."""
        names = list(dict.fromkeys(name for report in self.processes for name in report))
        shown = [name for name in names if any(report.get(name) not in (None, "") for report in self.processes)]
        rows = [["process", *(name.replace("_seconds", "") for name in shown)]]
        for i, report in enumerate(self.processes):
            rows.append([str(i), *(_cell(name, report.get(name)) for name in shown)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        if self.mesh:
            lines.append(f"mesh: {', '.join(f'{axis} {size}' for axis, size in self.mesh.items())}")
        lines += [f"problem: {line}" for line in (*self.problems, *self.passing)]
        return "\n".join(lines if self.problems or self.passing else [*lines, "all checks passed"])

    def check(self) -> None:
        """Raises an error if anything is wrong.

        Raises:
          InputError: somebody must change something.
          RunAgainError: the same command may succeed when it is run again.
        """
        found = [*self.problems, *self.passing]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        if self.problems:
            raise InputError(f"{self.problems[0]}{more}")
        if self.passing:
            raise RunAgainError(f"{self.passing[0]}{more}")


def preflight(options: PreflightOptions) -> Preflight:
    """Joins the processes of a run and collects a report of each. Every process gets all reports.

    Nothing is left behind in the output directory. Ends the process with a message and code 42 if another one does not
    arrive or report within the deadline.

    Raises:
      InputError: options that do not belong together, or no cluster that JAX knows.
      RunAgainError: processes that cannot be joined now, or one that ends meanwhile.
    """
    options.check_times()
    join(options)
    with reporting(options.deadline):
        found = device_reports(jax.devices())
        problems = differences(found, ("devices", "kind"))
        if problems:  # an exchange needs devices that are alike
            return Preflight(found, None, problems, [])
        mesh, mesh_problem = _mesh_sizes(options)
        own = {"host": platform.node(), **found[jax.process_index()], **_versions(), **_exchanged(options)}
        first = exchange({**own, "mesh_problem": mesh_problem, "token": secrets.token_hex(4)})
        clocks = _clock_differences()
        written = _try_output(options.output, first[0]["token"])
    problems += _version_problems(first) + differences(first, ("output", "mesh_options"))
    problems += [report["mesh_problem"] for report in first[:1] if report["mesh_problem"]]
    problems += _clock_problems(clocks)
    problems += [f"process {i}: {report['problem']}" for i, report in enumerate(written) if report["problem"]]
    passing = [f"process {i}: {report['passing']}" for i, report in enumerate(written) if report["passing"]]
    reports = [
        {name: report[name] for name in ("host", "devices", "kind", "python", *PACKAGES)}
        | {"clock_seconds": round(clock, 3), "output": result["outcome"]}
        for report, clock, result in zip(first, clocks, written, strict=True)
    ]
    return Preflight(reports, mesh, problems, passing)


def _exchanged(options: PreflightOptions) -> dict[str, str]:
    """Returns the options that must be those of process 0."""
    sizes = (options.mesh_data, options.mesh_fsdp, options.mesh_tensor)
    return {"output": brief(options.output, 500), "mesh_options": " ".join(map(str, sizes))}


def _versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages; empty for one that is not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {name: found.get(name, "") for name in ("python", *PACKAGES)}


def _version_problems(reports: Sequence[dict[str, Any]]) -> list[str]:
    """Returns lines about versions that differ. Of Python the first two numbers count."""
    minor = [{**report, "python": ".".join(report["python"].split(".")[:2])} for report in reports]
    lines = differences(minor, ("python", *PACKAGES))
    return [f"{line}: install the same versions on all hosts, or give them one image" for line in lines]


def _clock_differences() -> list[float]:
    """Returns by how many seconds the clock of each process is ahead of that of process 0.

    The processes read their clocks as an exchange ends, which it does everywhere at nearly the same moment.
    """
    exchange({})
    rounds = []
    for _ in range(_ROUNDS):
        read = [report["time"] for report in exchange({"time": time.time()})]
        rounds.append([there - read[0] for there in read])
    return [statistics.median(values) for values in zip(*rounds, strict=True)]


def _clock_problems(clocks: Sequence[float]) -> list[str]:
    worst = max(range(len(clocks)), key=lambda i: abs(clocks[i]))
    if abs(clocks[worst]) <= CLOCK_SECONDS:
        return []
    side = "ahead of" if clocks[worst] > 0 else "behind"
    return [
        f"the clock of process {worst} is {abs(clocks[worst]):.1f} s {side} that of process 0; synchronize the clocks "
        "of all hosts (NTP)"
    ]


def _try_output(output: str, token: str) -> list[dict[str, str]]:
    """Writes, reads and removes a small file in every process. Returns the outcome of each.

    Process 0 writes first; the others look for its file, too. All take part whatever they were given.
    """
    name = lambda process: f".preflight-{token}-{process}"
    process = jax.process_index()
    outcome = {"outcome": "not asked", "problem": "", "passing": ""}
    with contextlib.ExitStack() as stack:
        write = lambda: stack.enter_context(storage.trial_file("--output", output, name(process)))
        if process == 0 and output:
            outcome = _outcome(write)
        first_wrote = exchange({"wrote": outcome["outcome"] == "written"})[0]["wrote"]
        if process != 0 and output:
            outcome = _outcome(write)
            if first_wrote and outcome["outcome"] == "written":
                outcome = _outcome(lambda: _look_for(output, name(0)))
        exchange({})  # nothing is removed before all have looked
        removed = _outcome(stack.close) if process != 0 else {}
        exchange({})  # process 0 removes the directory that it may have made, which must be empty by then
        if process == 0:
            removed = _outcome(stack.close)
    return exchange(removed if outcome["outcome"] == "written" else outcome)


def _look_for(output: str, name: str) -> None:
    if not storage.sees_trial_file(output, name):
        raise InputError(
            f"--output {output}: does not have the file that process 0 wrote there; give a directory on a disk that "
            "all processes mount, or a bucket"
        )


def _outcome(action: Callable[[], Any]) -> dict[str, str]:
    """Returns how an action on the output went. Errors are returned, because the other processes wait for this one."""
    try:
        action()
    except RunAgainError as error:
        return {"outcome": "failed", "problem": "", "passing": brief(error, 1000)}
    except OSError as error:
        kind = "passing" if storage.may_pass(error) else "problem"
        return {"outcome": "failed", "problem": "", "passing": ""} | {kind: f"--output {storage.explain(error)}"}
    except InputError as error:
        return {"outcome": "failed", "problem": brief(error, 1000), "passing": ""}
    return {"outcome": "written", "problem": "", "passing": ""}


def _mesh_sizes(options: ProcessOptions) -> tuple[dict[str, int] | None, str]:
    """Returns the sizes of the mesh's axes, or why the options do not fit the devices."""
    try:
        return dict(mesh_of(options).shape), ""
    except InputError as error:
        return None, brief(error, 1000)


def _cell(name: str, value: Any) -> str:
    return f"{value:+.3f} s" if name == "clock_seconds" else str(value)
