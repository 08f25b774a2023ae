"""Damaged training states: what is restored is what was saved, or one clear line says what to delete.

A few with a fixed seed; ``-m long`` tries 2,000 and writes what it found to ``benchmarks/results/fuzz_states.json``.
"""

import collections
import json
import logging
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from deberta_jax.errors import InputError
from deberta_jax.training.checkpoints import Checkpoints
from deberta_jax.training.directory import record_problem
from tests.fuzz.mutations import mutated_bytes, mutated_json
from tests.training.test_damaged_states import equal, shardings_of, state_at

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "fuzz_states.json"
STEPS = (6, 9)


def record_at(step):
    best = {"loss": 0.5, "accuracy": None}
    return {
        "run": "x",
        "position": step * 8,
        "evaluated": 6,
        "best_step": 6,
        "best": best,
        "unwritten": [{"loss": 1.5, "padding": 0.25}],
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fuzz") / "state"
    checkpoints = Checkpoints(directory, keep=2)
    for step in STEPS:
        checkpoints.save(step, state_at(step), record_at(step))
    checkpoints.close()
    return directory


def files_of(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def flip(path, rng):
    data = bytearray(path.read_bytes())
    if data:
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)


def change_json(path, rng):
    if path.read_bytes()[:1] == b"{":
        path.write_bytes(mutated_json(json.loads(path.read_text()), rng))
    else:
        path.write_bytes(mutated_bytes(path.read_bytes(), rng))


def swap(path, rng):
    others = [other for other in files_of(path.parents[0]) if other != path] or [path]
    other = others[int(rng.integers(len(others)))]
    a, b = path.read_bytes(), other.read_bytes()
    path.write_bytes(b)
    other.write_bytes(a)


def exchange_between_steps(path, rng):
    """The same file of the other step; arrays have other names there."""
    step = next(parent for parent in path.parents if parent.name in ("6", "9"))
    other = step.with_name("9" if step.name == "6" else "6") / path.relative_to(step)
    if other.is_file():
        a, b = path.read_bytes(), other.read_bytes()
        path.write_bytes(b)
        other.write_bytes(a)


def remove_directory(path, rng):
    shutil.rmtree(path.parent)


def rename_step(path, rng):
    step = next(parent for parent in path.parents if parent.name in ("6", "9"))
    target = step.with_name(str(rng.choice(["7", "12", "0009", "x", "9.damaged"])))
    if not target.exists():
        step.rename(target)


def add_foreign(path, rng):
    (path.parent / str(rng.choice(["x", "12", "checksums.json.bak", ".hidden"]))).write_bytes(rng.bytes(20))


CHANGES = {
    "a flipped bit": flip,
    "other bytes": lambda path, rng: path.write_bytes(mutated_bytes(path.read_bytes(), rng)),
    "another JSON value": change_json,
    "a cut file": lambda path, rng: os.truncate(path, int(rng.integers(path.stat().st_size + 1))),
    "a missing file": lambda path, rng: path.unlink(),
    "an empty file": lambda path, rng: path.write_bytes(b""),
    "exchanged files": swap,
    "files exchanged between two steps": exchange_between_steps,
    "a missing directory": remove_directory,
    "a renamed step": rename_step,
    "a foreign file": add_foreign,
}


def outcome(directory):
    """The step that was restored, or "refused"."""
    like = state_at(0)
    try:
        checkpoints = Checkpoints(directory, keep=2)
        try:
            found = checkpoints.restore_latest(like, shardings_of(like), record_problem)
        finally:
            checkpoints.close()
    except InputError as error:
        line = str(error)
        assert "\n" not in line
        assert len(line) < 4200
        return "refused", line
    return ("none", "") if found is None else found


def fuzz(saved, directory, count, seed):
    rng = np.random.default_rng(seed)
    found, lines, unlisted, slowest = collections.Counter(), collections.Counter(), 0, 0.0
    logging.disable(logging.WARNING)
    try:
        for i in range(count):
            work = shutil.copytree(saved, directory / f"work{i}")
            without_list = rng.random() < 0.1
            if without_list:
                (work / "9" / "checksums.json").unlink()
            kinds = [str(kind) for kind in rng.choice(list(CHANGES), int(rng.integers(1, 3)))]
            for kind in kinds:
                newest = work / "9" if (work / "9").is_dir() and rng.random() < 0.8 else work
                files = [path for path in files_of(newest) if path.relative_to(work).parts[0] in ("6", "9")]
                if files:
                    CHANGES[kind](files[int(rng.integers(len(files)))], rng)
            begin = time.monotonic()
            what, *rest = outcome(work)
            slowest = max(slowest, time.monotonic() - begin)
            # A state whose list has gone is restored without a comparison, as those of earlier versions.
            listed = what in STEPS and (work / str(what) / "checksums.json").is_file()
            if listed:
                assert equal(rest[0], state_at(what)), f"number {i} of seed {seed}: {kinds}"
                assert rest[1] == record_at(what), f"number {i} of seed {seed}: {kinds}"
            elif what not in ("refused", "none"):
                unlisted += 1
            else:
                lines[re.sub(r"\d+", "N", re.sub(r"/\S*/", "", rest[0]))[:80]] += what == "refused"
            found[str(what)] += listed or what in ("refused", "none")
            shutil.rmtree(work)
    finally:
        logging.disable(logging.NOTSET)
    return found, lines, unlisted, slowest


def test_what_was_saved_or_one_line(saved, tmp_path, capfd):
    found, _, unlisted, _ = fuzz(saved, tmp_path, 30, seed=1)
    assert found["9"] > 1
    assert found["6"] > 10
    assert unlisted < 10
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.long
def test_two_thousand_states(saved, tmp_path, capfd):
    found, lines, unlisted, slowest = fuzz(saved, tmp_path, 2_000, seed=2)
    printed = capfd.readouterr().err.count("Traceback")
    result = {
        "states": 2_000,
        "seed": 2,
        "kinds of damage": list(CHANGES),
        "the latest restored as saved": found["9"],
        "the older one restored as saved": found["6"],
        "refused with one line": found["refused"],
        "no state left": found["none"],
        "restored without a list of digests": unlisted,
        "other exceptions": 0,
        "tracebacks printed": printed,
        "restored other than saved although there is a list": 0,
        "slowest took less than five seconds": slowest < 5,
        "most frequent messages": dict(lines.most_common(20)),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    assert printed == 0
    assert slowest < 5
