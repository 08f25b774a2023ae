"""Checks a commit message; git runs it as the commit-msg hook, after `pre-commit install`.

    python scripts/commit_message.py FILE

The subject has at most 72 characters, begins with a capital letter and does not end with a period. An empty line and a
body that gives the reason for the change follow. Messages that git itself writes, of merges, reverts and commits that
`git rebase --autosquash` will join to others, are accepted as they are.
"""

import re
import sys
from pathlib import Path

LONGEST_SUBJECT = 72

_WRITTEN_BY_GIT = ("Merge ", 'Revert "', "fixup! ", "squash! ", "amend! ")
_SCISSORS = re.compile(r"^# -+ >8 -+$.*", re.MULTILINE | re.DOTALL)
_TRAILER = re.compile(r"[A-Za-z-]+-by: ")


def problems(message: str) -> list[str]:
    """Returns what is wrong with a commit message, one sentence each; an empty list for a good one.

    Args:
        message: the text of the file that git gives to the hook. Comment lines, and everything below the line of
            `git commit --verbose`, are left out as git does.
    """
    lines = [line.rstrip() for line in _SCISSORS.sub("", message).splitlines() if not line.startswith("#")]
    while lines and not lines[0]:
        lines.pop(0)
    if not lines:
        return ["the message is empty"]
    subject, rest = lines[0], lines[1:]
    if subject.startswith(_WRITTEN_BY_GIT):
        return []
    found = []
    if len(subject) > LONGEST_SUBJECT:
        found.append(f"the subject has {len(subject)} characters; shorten it to {LONGEST_SUBJECT}")
    if subject.endswith("."):
        found.append("the subject ends with a period; leave it out")
    if not subject[0].isupper():
        found.append("the subject does not begin with a capital letter")
    if rest and rest[0]:
        found.append("the second line is not empty; separate subject and body by an empty line")
    if not any(line and not _TRAILER.match(line) for line in rest):
        found.append("there is no body; say why the change is made")
    return found


def main(path: str) -> int:
    """Prints what is wrong with the message in a file. Returns the exit code, 0 or 1."""
    found = problems(Path(path).read_text(encoding="utf-8"))
    for problem in found:
        print(f"commit message: {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
