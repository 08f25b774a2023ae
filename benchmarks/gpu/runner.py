"""Runs a part's cases in a process of its own, within a time limit, and starts another one where that process ends.

A crash, a hang or an unusable device costs the case at hand; the cases after it go on in a new process. Only the
standard library is used here, so that no library's failure reaches this process.
"""

import collections
import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# A process is given this long to import its libraries and to list its cases: a bare machine reads them from disk first.
START_SECONDS = 90.0
# After so many of a group's cases died or were stopped, its other cases are skipped.
GROUP_FAILURES = 2
# No new process is started with less than this left of a part's time.
RESTART_SECONDS = 15.0
_ERROR_CHARACTERS = 2000
_NO_TIME = "stopped: the part's time was used up"

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the kit.

    Attributes:
      name: of the part.
      module: in this folder; has ``cases(request)``.
      seconds: time that the part is given.
      case_seconds: after which a case is stopped.
      environment: of its processes, besides that of this one.
    """

    name: str
    module: str
    seconds: float
    case_seconds: float
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Progress:
    """What is known of a part.

    Attributes:
      cases: the group of each, by name. rows: of the cases that ended, by name.
      reason: why the part ended before its cases. failed: True if that is not for want of time.
    """

    cases: dict[str, str] = dataclasses.field(default_factory=dict)
    rows: dict[str, Row] = dataclasses.field(default_factory=dict)
    reason: str = ""
    failed: bool = False

    def left(self) -> list[str]:
        return [name for name in self.cases if name not in self.rows]


class _Process:
    """A worker: events come from a thread that reads its standard output, None at its end."""

    def __init__(self, part: Part, request: Mapping[str, Any], errors: IO[bytes]):
        paths = [str(ROOT), str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | part.environment
        self.errors = errors
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            cwd=ROOT,
            text=True,
            process_group=0,  # so that what it starts ends with it
        )
        self.events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, args=(json.dumps(request),), daemon=True).start()

    def _read(self, request: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            with self.process.stdin as stdin:
                stdin.write(request)
            for line in self.process.stdout:
                self.events.put(json.loads(line))
        except (OSError, ValueError):  # a process that died while it wrote or before it read
            pass
        self.events.put(None)

    def await_end(self, seconds: float = 10.0) -> None:
        """Waits until the process has ended, so that its exit code is known, or the time is over."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def stop(self) -> None:
        """Ends the process and all that it started; one that still runs writes first where it is."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)
            self.await_end(1.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.await_end()  # not for ever: a process that waits for a broken driver cannot even be killed

    def last_words(self) -> str:
        """Returns how the process ended, and the end of what it wrote to standard error."""
        code = self.process.poll()
        if code is None:
            how = "could not be killed"
        else:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.errors.seek(0)
        text = self.errors.read().decode(errors="replace").strip()
        return f"{how}\n{text[-_ERROR_CHARACTERS:]}".strip()


def run_part(
    part: Part, *, tiny: bool, extra: str | None, seconds: float, ended: Callable[[str, Row], None]
) -> Progress:
    """Runs all cases of a part that ``seconds`` have room for.

    Args:
      seconds: after which the part is stopped; the cases left are then rows of status "skipped".
      ended: called with the name and the row of each case as it ends.
    """
    progress = Progress()
    deadline = time.monotonic() + seconds

    def keep(name: str, row: Row) -> None:
        progress.rows[name] = row
        ended(name, row)

    if seconds < RESTART_SECONDS:
        progress.reason = "no time was left for it"
    while not progress.reason:
        known = len(progress.rows)
        request = {"module": part.module, "tiny": tiny, "extra": extra, "done": list(progress.rows)}
        with tempfile.TemporaryFile() as errors:
            worker = _Process(part, request, errors)
            try:
                current, why = _follow(worker, part, progress, deadline, keep)
            finally:
                worker.stop()
            words = worker.last_words()
        _record_end(progress, current, why, words, keep)
        if progress.cases and not progress.left():
            return progress
        if time.monotonic() >= deadline:
            progress.reason = "its time was used up"
        elif len(progress.rows) == known:
            progress.reason, progress.failed = f"no case could be run: {why or words}", True
        elif deadline - time.monotonic() < RESTART_SECONDS:
            progress.reason = "too little of its time was left for another process"
    for name in progress.left():
        keep(name, _skipped(f"the part ended before it: {progress.reason.strip().splitlines()[0]}"))
    return progress


def _follow(
    worker: _Process, part: Part, progress: Progress, deadline: float, keep: Callable[[str, Row], None]
) -> tuple[str | None, str]:
    """Reads a worker's events. Returns the case that it was in at its end, and why it is to be stopped, if it is."""
    current, limit = None, START_SECONDS
    while True:
        wait = min(limit, deadline - time.monotonic())
        try:
            event = worker.events.get(timeout=max(0.0, wait))
        except queue.Empty:
            if time.monotonic() >= deadline:
                return current, _NO_TIME
            return current, f"stopped: no result within {limit:.0f} s"
        if event is None:
            worker.await_end()
            return current, ""
        if "cases" in event:
            progress.cases = dict(event["cases"])
        elif "begin" in event:
            current = event["begin"]
        elif "end" in event:
            current = None
            keep(event["end"], event["row"])
        elif "restart" in event:
            return None, event["restart"]
        limit = part.case_seconds


def _record_end(
    progress: Progress, current: str | None, why: str, words: str, keep: Callable[[str, Row], None]
) -> None:
    """Makes a row of the case that a process did not survive, and skips the rest of a group that keeps failing."""
    if current is None:
        return
    group = progress.cases[current]
    if why == _NO_TIME:
        keep(current, _skipped(why))
    elif why:
        keep(current, {"status": "stopped", "reason": why, "stderr": words})
    else:
        how = f"its process ended: {words.splitlines()[0]}"
        keep(current, {"status": "died", "reason": how, "stderr": words})
    failures = collections.Counter(
        progress.cases[name] for name, row in progress.rows.items() if row["status"] in ("stopped", "died")
    )
    if group and failures[group] >= GROUP_FAILURES:
        for name in progress.left():
            if progress.cases[name] == group:
                keep(name, _skipped(f"{group} died or was stopped {failures[group]} times before"))


def _skipped(reason: str) -> Row:
    return {"status": "skipped", "reason": reason}
