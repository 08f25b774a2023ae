"""Records the sessions of a run in sessions.jsonl as it goes, and how much of the time became training."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from deberta_jax import storage


class SessionLog:
    """Writes the line of this session, again at each ``update``: a session that is killed leaves its line too.

    Besides what ``facts`` has, a line holds ``from_step`` and ``to_step``; ``started``, in seconds since 1970;
    ``seconds``; ``training_seconds``, those of training steps alone; and ``goodput``, see ``goodput``.

    Args:
      directory: the directory of the run.
      step: the step that the session starts at.
      facts: what does not change, such as devices and versions.
      began: ``time.perf_counter()`` when the session began to read its weights or its state.
      writer: True for the one process that writes.
    """

    def __init__(
        self, directory: storage.AnyPath, step: int, facts: Mapping[str, Any], *, began: float, writer: bool = True
    ):
        self._path, self._writer = directory / "sessions.jsonl", writer
        self._earlier = storage.read_json_lines(self._path) if writer else []
        self._began, self._training = began, 0.0
        started = time.time() - (time.perf_counter() - began)
        self._line = {**facts, "from_step": step, "to_step": step, "started": round(started, 3)}
        self.update(step)

    def trained(self, seconds: float) -> None:
        """Adds time that training steps took."""
        self._training += seconds

    def update(self, step: int) -> None:
        """Writes the line of this session, which has come to a step. Raises OSError."""
        if not self._writer:
            return
        seconds = time.perf_counter() - self._began
        self._line |= {"to_step": step, "seconds": round(seconds, 2), "training_seconds": round(self._training, 2)}
        lines = [*self._earlier, self._line]
        self._line["goodput"] = goodput(lines)
        storage.write_json_lines(self._path, lines)


def goodput(sessions: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns the fraction of the time since the first session began that became training which counts.

    Starting, compiling, evaluating, saving and waiting for a restart do not count, nor do steps that were taken again
    because no state was saved after them.

    Args:
      sessions: lines of sessions.jsonl; those of older versions, which lack fields, are left out.

    Returns:
      None if no time has passed.
    """
    names = ("from_step", "to_step", "started", "seconds", "training_seconds")
    found = [s for s in sessions if all(isinstance(s.get(name), int | float) for name in names)]
    if not found:
        return None
    whole = found[-1]["started"] + found[-1]["seconds"] - found[0]["started"]
    useful = 0.0
    for session, following in zip(found, [*found[1:], None], strict=True):
        steps = session["to_step"] - session["from_step"]
        kept = steps if following is None else min(following["from_step"], session["to_step"]) - session["from_step"]
        useful += session["training_seconds"] * max(kept, 0) / steps if steps > 0 else 0.0
    return round(min(useful / whole, 1.0), 4) if whole > 0 else None
