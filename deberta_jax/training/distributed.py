"""Joins several processes to one run with JAX's distributed runtime, checks them, and stops them together."""

import contextlib
import json
import logging
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from deberta_jax import storage
from deberta_jax.errors import RUN_AGAIN, InputError, RunAgainError
from deberta_jax.training.process_options import ProcessOptions

_log = logging.getLogger(__name__)

NO_CLUSTER = (
    "--distributed: JAX finds the processes of a run on TPU pods, under SLURM and Open MPI, and in Kubernetes; this "
    "process is in none of them. Give --coordinator HOST:PORT (an address of process 0 that all can reach), "
    "--processes N and --process I; in a JobSet on GPUs install jax[k8s]"
)


def start(r: ProcessOptions) -> None:
    """Joins the other processes, if the run has any, and checks that they are alike. Raises as ``join``."""
    if join(r):
        check_processes(r.deadline)


def join(r: ProcessOptions) -> bool:
    """Joins the other processes, if the run has any. Must be called before the first use of a device.

    Ends the process with a message and code 42 where another one does not arrive within the deadline.

    Returns:
      True if there are others, and this call has joined them.

    Raises:
      InputError: flags that do not belong together, or no cluster that JAX knows.
      RunAgainError: processes that cannot be joined now.
    """
    given = (r.coordinator != "", r.processes > 0, r.process >= 0)
    if not any(given) and not r.distributed:
        return False
    if any(given) and not all(given):
        raise InputError("--coordinator, --processes and --process belong together; give all three, or --distributed")
    if jax.distributed.is_initialized():
        return False
    options: dict[str, Any] = {"heartbeat_timeout_seconds": r.heartbeat, "initialization_timeout": r.deadline + 60}
    if all(given):
        options |= {"coordinator_address": r.coordinator, "num_processes": r.processes, "process_id": r.process}
    here = f"process {r.process} of {r.processes}" if r.processes else "this process"
    missing = (
        f"{here} is here, but another one did not arrive within {r.deadline} s: one that prints no line like this. It "
        f"was not started, died at its start (see its own output), was given another --coordinator than "
        f"{r.coordinator or 'this one'}, or a firewall closes that port"
    )
    try:
        with _deadline(r.deadline, missing):
            jax.distributed.initialize(**options)
    except RuntimeError as error:
        raise RunAgainError(f"the processes could not be joined: {' '.join(str(error).split())[:300]}") from None
    except ValueError as error:
        if all(given):
            raise InputError(f"the processes could not be joined: {' '.join(str(error).split())[:300]}") from None
        raise InputError(NO_CLUSTER) from None
    _results_alone_on_stdout()
    return True


@contextlib.contextmanager
def _deadline(seconds: int, message: str) -> Iterator[None]:
    """Ends the process with ``message`` if the block takes longer. A call that waits for others cannot be interrupted.

    JAX would end the process at its own timeout, without an explanation; this timer fires first.
    """

    def give_up() -> None:
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(RUN_AGAIN)

    watch = threading.Timer(seconds, give_up)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def _results_alone_on_stdout() -> None:
    """Sends file descriptor 1 to standard error, and Python's ``print`` to where it went before.

    Native code, such as gloo's, writes messages to file descriptor 1.
    """
    sys.stdout.flush()
    before = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(before, "w", encoding="utf-8")


def check_processes(deadline: int) -> None:
    """Checks that all processes are alike. Process 0 logs a line about each.

    Ends the process with a message if the others do not report within ``deadline`` seconds.

    Raises:
      InputError: a process that has another number or kind of devices, or another JAX, than the first.
    """
    with reporting(deadline):
        found = device_reports(jax.devices())
        _check_alike(found, ("devices", "kind"))  # the exchange below needs them alike
        found = exchange({"host": platform.node(), **found[jax.process_index()], "jax": jax.__version__})
    if is_writer():
        for process, report in enumerate(found):
            _log.info("process %d: %s", process, ", ".join(f"{name} {value}" for name, value in report.items()))
    _check_alike(found, ("jax",))


@contextlib.contextmanager
def reporting(deadline: int) -> Iterator[None]:
    """Ends the process with a message if the block, in which all processes exchange reports, takes too long.

    Args:
      deadline: seconds.

    Raises:
      RunAgainError: the exchange failed, as it does where another process has ended.
    """
    # The number of processes is not known yet: JAX asks the devices for it, and they may not answer.
    joined = "the processes are joined, but not all reported their devices"
    silent = (
        f"{joined if jax.distributed.is_initialized() else 'the devices did not answer'} within {deadline} s; an "
        "accelerator may be held by another program"
    )
    with _deadline(deadline, silent):
        try:
            yield
        except RunAgainError:
            raise
        except RuntimeError as error:
            raise RunAgainError(f"{silent} ({' '.join(str(error).split())[:200]})") from None


_REPORT_BYTES = 8192
"""Largest size of what a process gives to ``exchange``, as JSON."""


def exchange(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the reports of all processes, in their order. All must call, and have devices that are alike.

    All return at nearly the same moment.

    Args:
      report: what JSON can represent, in at most 8192 bytes.
    """
    if jax.process_count() == 1:
        return [dict(report)]
    encoded = json.dumps(report).encode()
    row = np.zeros(_REPORT_BYTES, np.uint8)
    row[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    everywhere = multihost_utils.process_allgather(row)
    return [json.loads(bytes(theirs).rstrip(b"\0")) for theirs in everywhere]


def device_reports(devices: Sequence[jax.Device]) -> list[dict[str, Any]]:
    """Returns the number and kind of each process's devices."""
    by_process = [[d for d in devices if d.process_index == process] for process in range(jax.process_count())]
    return [{"devices": len(own), "kind": own[0].device_kind if own else "none"} for own in by_process]


def differences(reports: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Returns a line for each name of which a process reports another value than process 0."""
    found = []
    for name in names:
        odd = next((i for i, report in enumerate(reports) if report[name] != reports[0][name]), None)
        if odd is not None:
            ours, theirs = reports[0][name], reports[odd][name]
            found.append(f"process {odd} has {name} {theirs}, process 0 has {ours}; all must be alike")
    return found


def _check_alike(reports: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    found = differences(reports, names)
    if found:
        raise InputError(found[0])


def leave_behind(error: Exception) -> NoReturn:
    """Ends this process with code 42 because another one is gone.

    Nothing can be closed in order without the other one, and the last saved state is whole.
    """
    print(
        f"error: process {jax.process_index()} of {jax.process_count()} has lost another one, which ended or cannot be "
        f"reached ({' '.join(str(error).split())[:200]}); start all again to go on from the last saved state",
        file=sys.stderr,
        flush=True,
    )
    os._exit(RUN_AGAIN)


def is_writer() -> bool:
    """Returns True for the one process that writes files and messages."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Waits until all processes have called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_process(found: bool) -> bool:
    """Returns whether ``found`` is true in any process. All must call."""
    if jax.process_count() == 1:
        return found
    return bool(np.any(multihost_utils.process_allgather(np.array(found))))


def check_shared(directory: storage.AnyPath, found: bool) -> None:
    """Checks that all processes found the same in the run's directory. All must call.

    Raises:
      InputError: in every process, if they found different things: they do not share the directory.
    """
    if jax.process_count() == 1:
        return
    everywhere = multihost_utils.process_allgather(np.array(found))
    other = [i for i, theirs in enumerate(everywhere) if theirs != everywhere[0]]
    if other:
        raise InputError(
            f"--output {directory}: process {other[0]} does not see there what process 0 sees; give a directory on a "
            "disk that all processes mount"
        )


@contextlib.contextmanager
def alone_in(directory: storage.AnyPath) -> Iterator[None]:
    """Locks a run's directory against other runs; the writer does so for all processes of this run.

    Raises:
      InputError: in every process, if another run holds the lock or the directory cannot be written.
    """
    refused = None
    with contextlib.ExitStack() as stack:
        if is_writer():
            try:
                stack.enter_context(storage.locked_directory("--output", directory))
            except InputError as error:
                refused = error
        if any_process(refused is not None):
            raise refused or InputError(f"--output {directory}: process 0 cannot use it; see its message")
        yield


class Stopped(Exception):
    """Signals that the run is to stop, and which signal asked for it."""

    def __init__(self, number: signal.Signals):
        super().__init__(number.name)
        self.signal = number


class GracefulStop:
    """Delays SIGTERM and SIGINT within its block, so that a run can save its state and end.

    In one process a signal is recorded, a second one too, and ``check`` raises Stopped where it is safe. With several
    processes JAX receives SIGTERM, and a preemption notice, at any of them; all stop at the same ``check``, for which
    all must call it equally often. SIGINT then interrupts as in any Python program.
    """

    def __enter__(self) -> "GracefulStop":
        self.received: signal.Signals | None = None
        self.checks = 0
        self.before: dict[signal.Signals, Any] = {}
        # With several processes JAX's preemption service handles SIGTERM and notifies the others.
        numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self.before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, _) -> None:
        self.received = signal.Signals(number)

    def check(self) -> None:
        """Raises Stopped, in all processes at the same check, if any of them got a signal or a preemption notice."""
        if self.received is not None:
            raise Stopped(self.received)
        self.checks += 1
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self.checks):
            raise Stopped(signal.SIGTERM)
