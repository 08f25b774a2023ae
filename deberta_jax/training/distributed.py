"""Several processes as one run, by JAX's own runtime: found or told, counted, stopped together."""

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed as _state  # the key-value store has no public name
from jax.experimental import multihost_utils

from deberta_jax.errors import InputError
from deberta_jax.training.experiment import Runtime

_log = logging.getLogger(__name__)


def start(r: Runtime) -> None:
    """Joins the other processes, if the run has any; must come before the first use of a device.

    Raises:
      InputError: flags that do not belong together. Where a process does not arrive within the deadline this one ends
        with a line that says what is usually the cause.
    """
    told = (r.coordinator != "", r.processes > 0, r.process >= 0)
    if not any(told) and not r.distributed:
        return
    if any(told) and not all(told):
        raise InputError("--coordinator, --processes and --process belong together; give all three, or --distributed")
    if jax.distributed.is_initialized():
        return
    # JAX ends the process without Python when its own time is up; the watch comes first and says more.
    watch = threading.Timer(r.deadline, _give_up, [r])
    watch.daemon = True
    watch.start()
    options: dict[str, Any] = {"heartbeat_timeout_seconds": r.heartbeat, "initialization_timeout": r.deadline + 60}
    if all(told):
        options |= {
            "coordinator_address": r.coordinator, "num_processes": r.processes, "process_id": r.process
        }  # fmt: skip
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes could not be joined: {' '.join(str(error).split())[:300]}") from None
    finally:
        watch.cancel()
    _results_alone_on_stdout()
    preflight(r.deadline)


def _give_up(r: Runtime) -> None:
    """Ends the process: the call that waits for the others cannot be left in another way."""
    print(
        f"error: {f'process {r.process} of {r.processes}' if r.processes else 'this process'} is here, but another one "
        f"did not arrive within {r.deadline} s: one that prints no line like this. It was not started, died at its "
        f"start (see its own output), was given another --coordinator than {r.coordinator or 'this one'}, or a "
        "firewall closes that port",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(2)


def _results_alone_on_stdout() -> None:
    """Native code, gloo's for one, writes to file 1: from here on that is standard error, and ``print`` goes where it
    went before."""
    sys.stdout.flush()
    before = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(before, "w")


def preflight(deadline: int) -> list[dict[str, Any]]:
    """What every process reports of itself; process 0 logs it.

    Raises:
      InputError: a process that does not report within the deadline, or has other versions or devices than the first.
    """
    client = _state.global_state.client
    assert client is not None
    mine = {
        "host": os.uname().nodename, "devices": jax.local_device_count(), "kind": jax.local_devices()[0].device_kind,
        "jax": jax.__version__,
    }  # fmt: skip
    client.key_value_set(f"deberta_jax/preflight/{jax.process_index()}", json.dumps(mine))
    found = []
    for process in range(jax.process_count()):
        try:
            found.append(json.loads(client.blocking_key_value_get(f"deberta_jax/preflight/{process}", deadline * 1000)))
        except Exception as error:
            raise InputError(
                f"process {process} of {jax.process_count()} did not report its devices within {deadline} s; its "
                f"accelerator may be held by another program ({' '.join(str(error).split())[:120]})"
            ) from None
    if is_writer():
        for process, report in enumerate(found):
            _log.info("process %d: %s", process, ", ".join(f"{k} {v}" for k, v in report.items()))
    for name in ("devices", "kind", "jax"):
        odd = [i for i, report in enumerate(found) if report[name] != found[0][name]]
        if odd:
            raise InputError(
                f"process {odd[0]} has {name} {found[odd[0]][name]}, process 0 has {found[0][name]}; all must be alike"
            )
    return found


def leave_behind(error: Exception) -> NoReturn:
    """Ends this process because another one is gone: with that one missing nothing can be closed in order, and the last
    saved state is whole."""
    print(
        f"error: process {jax.process_index()} of {jax.process_count()} has lost another one, which ended or cannot be "
        f"reached ({' '.join(str(error).split())[:200]}); start all again to go on from the last saved state",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(1)


def is_writer() -> bool:
    """The one process that writes files and messages."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_shared(directory: Path, found: bool) -> None:
    """Waits for all processes, each of which says what it found in the run's directory.

    Raises:
      InputError: in every process, if they found different things: a run's directory is one that all see.
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


class Stopped(Exception):
    """A signal asked the run to end."""

    def __init__(self, number: signal.Signals):
        super().__init__(number.name)
        self.signal = number


class GracefulStop:
    """Within the block SIGTERM and SIGINT only set a mark; ``check`` raises Stopped where it is safe to stop.

    With several processes a signal to any of them, or a notice of preemption, stops all after the same step:
    ``check_step`` must be called by all with every step.
    """

    def __enter__(self) -> "GracefulStop":
        self.received: signal.Signals | None = None
        self.before: dict[signal.Signals, Any] = {}
        # With several processes JAX's own service listens for SIGTERM and tells the others.
        numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self.before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, _) -> None:
        self.received = signal.Signals(number)

    def check(self) -> None:
        if self.received is not None:
            raise Stopped(self.received)

    def check_step(self, step: int) -> None:
        self.check()
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            raise Stopped(signal.SIGTERM)
