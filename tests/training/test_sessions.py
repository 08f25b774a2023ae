"""What sessions.jsonl says while a run goes on, and how its goodput is counted."""

import json
import time

import pytest

from deberta_jax.training.sessions import SessionLog, goodput


def session(start: float, steps: tuple[int, int], seconds: float, training: float) -> dict[str, float]:
    first, last = steps
    return {
        "from_step": first,
        "to_step": last,
        "started": start,
        "seconds": seconds,
        "training_seconds": training,
    }


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        ([session(0, (0, 10), 100, 80)], 0.8),
        # Half of the first session's steps were taken again; the machine was away for 100 seconds.
        ([session(0, (0, 10), 100, 80), session(200, (5, 10), 50, 40)], (40 + 40) / 250),
        # The first session was killed before its first state.
        ([session(0, (0, 10), 100, 80), session(100, (0, 10), 100, 80)], 80 / 200),
        ([session(0, (0, 0), 10, 0)], 0.0),
        ([{"from_step": 0, "to_step": 3, "seconds": 4.0}], None),
        ([], None),
    ],
)
def test_goodput_counts_the_steps_that_were_kept(sessions, expected):
    assert goodput(sessions) == (None if expected is None else pytest.approx(expected))


def test_the_line_of_a_session_is_there_before_it_ends(tmp_path):
    path = tmp_path / "sessions.jsonl"
    path.write_text(json.dumps({"from_step": 0, "to_step": 4, "seconds": 1.0}) + "\n")  # of an older version
    log = SessionLog(tmp_path, 4, {"devices": 8}, began=time.perf_counter() - 1)
    lines = lambda: [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["from_step"], line["to_step"]) for line in lines()] == [(0, 4), (4, 4)]
    log.trained(0.25)
    log.update(7)
    old, new = lines()
    assert "goodput" not in old
    assert (new["from_step"], new["to_step"], new["devices"], new["training_seconds"]) == (4, 7, 8, 0.25)
    assert 0 <= new["goodput"] <= 1


def test_other_processes_write_no_sessions(tmp_path):
    SessionLog(tmp_path, 0, {}, began=time.perf_counter(), writer=False).update(3)
    assert not list(tmp_path.iterdir())
