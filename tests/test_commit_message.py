"""The commit-msg hook: which messages it accepts, and what it says of others."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GOOD = "Read packed rows in one pass\n\nThe second pass took half of the time.\n"
NO_BODY = "there is no body; say why the change is made"


def run(tmp_path: Path, message: str) -> tuple[int, list[str]]:
    path = tmp_path / "COMMIT_EDITMSG"
    path.write_text(message, encoding="utf-8")
    command = [sys.executable, ROOT / "scripts" / "commit_message.py", path]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, [line.removeprefix("commit message: ") for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "message",
    [
        GOOD,
        "A" * 72 + "\n\nWhy.",
        "# a comment\n\n" + GOOD + "# Please enter the commit message\n",
        "Merge branch 'words' into main, of a branch whose name makes this subject too long for the rule\n",
        'Revert "Read packed rows in one pass"\n',
        "fixup! Read packed rows in one pass\n",
    ],
)
def test_accepted(tmp_path, message):
    assert run(tmp_path, message) == (0, [])


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("A" * 73 + "\n\nWhy.", ["the subject has 73 characters; shorten it to 72"]),
        ("Read rows.\n\nWhy.", ["the subject ends with a period; leave it out"]),
        ("read rows\n\nWhy.", ["the subject does not begin with a capital letter"]),
        ("Read rows\nWhy.", ["the second line is not empty; separate subject and body by an empty line"]),
        ("Read rows\n", [NO_BODY]),
        ("Read rows\n\nSigned-off-by: A <a@example.org>\n", [NO_BODY]),
        ("Read rows\n\n# Why.\n", [NO_BODY]),
        ("Read rows\n# ------------------------ >8 ------------------------\ndiff --git a b\n", [NO_BODY]),
        ("# nothing\n", ["the message is empty"]),
        (
            "reads rows" + "s" * 63 + ".",
            [
                "the subject has 74 characters; shorten it to 72",
                "the subject ends with a period; leave it out",
                "the subject does not begin with a capital letter",
                NO_BODY,
            ],
        ),
    ],
)
def test_refused(tmp_path, message, said):
    assert run(tmp_path, message) == (1, said)
