"""Small files that would take up all time or memory: refused in a line, within seconds and little memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pickles import attacks

SECONDS, MEGABYTES = 5, 500


def check(form: str, *groups: str) -> None:
    command = [sys.executable, "-m", "tests.pickles.child", form, *groups]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path.cwd(), timeout=500)
    assert done.returncode == 0, done.stderr
    *found, last = map(json.loads, done.stdout.splitlines())
    assert len(found) == sum(len(getattr(attacks, group)) for group in groups) > 0
    for outcome in found:
        assert outcome["kind"] == "InputError", outcome
        assert outcome["message"].isprintable(), outcome
        assert len(outcome["message"]) < 4100, outcome["name"]
        assert outcome["seconds"] < SECONDS, outcome
    assert last["megabytes"] < MEGABYTES


@pytest.mark.slow
def test_small_files_are_refused_soon():
    check("zip", "WEIGHTS", "CONFIGS", "VOCABULARIES")


@pytest.mark.long
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_small_and_large_files_of_both_forms_are_refused_soon(form):
    check(form, "WEIGHTS", "CONFIGS", "VOCABULARIES", "LARGE")
