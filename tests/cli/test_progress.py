"""Progress as a bar, as lines or not at all, as real processes with and without a terminal show it."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios

import pytest

from deberta_jax.errors import InputError
from deberta_jax.progress import take_progress_option
from tests.made import refused

WORK = """
from deberta_jax import progress
import time
progress._SECONDS = 0.0
with progress.progress_bar(total=3, desc="reading", unit="text", mininterval=0, leave=False) as bar:
    for _ in range(3):
        bar.update()
with progress.progress_bar(total=2, desc="hidden", disable=True) as bar:
    bar.update()
"""


def shown(mode: str | None, terminal: bool) -> str:
    """What is on standard error, which is a terminal or a pipe."""
    environment = {key: value for key, value in os.environ.items() if key != "DEBERTA_JAX_PROGRESS"}
    environment |= {} if mode is None else {"DEBERTA_JAX_PROGRESS": mode}
    if not terminal:
        found = subprocess.run([sys.executable, "-c", WORK], env=environment, capture_output=True, check=True)
        return found.stderr.decode()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run([sys.executable, "-c", WORK], env=environment, stderr=theirs, check=True)
    text = b""
    while select.select([ours], [], [], 0)[0]:
        text += os.read(ours, 4096)
    os.close(theirs)
    os.close(ours)
    return text.decode().replace("\r\n", "\n")


def test_auto_is_a_bar_in_a_terminal_and_lines_elsewhere():
    bar, lines = shown(None, terminal=True), shown(None, terminal=False)
    assert "\rreading:  33%" in bar
    assert "\r" not in lines
    assert [line.split(" [")[0] for line in lines.splitlines()][-1] == "reading: 100% 3/3"
    assert "hidden" not in bar + lines


def test_the_setting_decides():
    assert "\r" in shown("bar", terminal=False)
    assert "\r" not in shown("lines", terminal=True)
    assert shown("none", terminal=True) == ""


def test_the_option_is_taken_from_any_command(monkeypatch, capsys):
    monkeypatch.setenv("DEBERTA_JAX_PROGRESS", "auto")
    assert take_progress_option(["predict", "--progress", "none", "--model", "m"]) == ["predict", "--model", "m"]
    assert os.environ["DEBERTA_JAX_PROGRESS"] == "none"
    assert take_progress_option(["--progress=lines"]) == []
    assert os.environ["DEBERTA_JAX_PROGRESS"] == "lines"
    assert refused(["inspect", "--progress", "dots", "m"], capsys) == (
        "error: --progress 'dots': expected one of auto, bar, lines, none"
    )
    with pytest.raises(InputError, match="expected one of"):
        take_progress_option(["--progress"])
