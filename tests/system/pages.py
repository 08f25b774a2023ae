"""Reads the code blocks of the README and the documentation, and runs those of one page in order.

    python tests/system/pages.py PAGE.md      # in a directory that holds what the page needs

- A `python` block is executed; all blocks of a page share one namespace. A `bash` block is run and must succeed.
- A block with `title="NAME"` is a file: it is written to NAME.
- `<!-- not run: REASON -->` on the line before a block leaves it out.
- `<!-- run with: A => B -->` there replaces A by B: what takes hours on a page takes a moment in a test.
- `<!-- prints -->` before a `text` block: the bash block before it prints each of these lines.
"""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])

RUN = ("python", "bash")
SHOWN = ("text", "csv", "json", "conll")
_FENCE = re.compile(r'```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?')
_COMMENT = re.compile(r"<!-- (not run|run with|prints)(?:: (.*))? -->")


@dataclasses.dataclass(frozen=True)
class Block:
    """Holds a code block: where it begins, its language, its text, and what the comment before it says."""

    page: str
    line: int
    language: str
    text: str
    title: str = ""
    comment: str = ""
    value: str = ""

    @property
    def runs(self) -> bool:
        return self.language in RUN and not self.title and self.comment != "not run"

    def program(self) -> str:
        """Returns the text to run."""
        if self.comment != "run with":
            return self.text
        before, _, after = self.value.partition(" => ")
        assert self.text.count(before) == 1, f"{self.page}:{self.line}: has no {before!r} to replace"
        return self.text.replace(before, after)


def blocks(page: str) -> list[Block]:
    """Returns the code blocks of a page, given by its path in the repository, in order."""
    found: list[Block] = []
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    start, fence, comment = 0, None, ("", "")
    for number, line in enumerate(lines, 1):
        if fence is not None:
            if line == "```":
                text = "\n".join(lines[start : number - 1]) + "\n"
                found.append(Block(page, start, fence["language"], text, fence["title"] or "", *comment))
                fence, comment = None, ("", "")
        elif line.startswith("```"):
            fence, start = _FENCE.fullmatch(line), number
            assert fence is not None, f"{page}:{number}: not the beginning of a code block: {line}"
        else:
            said = _COMMENT.fullmatch(line)
            assert said or not line.startswith("<!--"), f"{page}:{number}: a comment that means nothing: {line}"
            comment = (said[1], said[2] or "") if said else ("", "")
    assert fence is None, f"{page}:{start}: the block does not end"
    return found


def run(page: str) -> None:
    """Runs the blocks of a page in the current directory."""
    names = {"__name__": "__page__"}
    printed = ""
    for block in blocks(page):
        where = f"{page}:{block.line}"
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.comment == "prints":
            missing = [line for line in block.text.splitlines() if line not in printed.splitlines()]
            assert not missing, f"{where}: not printed: {missing}; but: {printed}"
        elif block.runs:
            print(f"--- {where}", flush=True)
            if block.language == "python":
                # Empty lines before it, so that a traceback has the line of the page.
                exec(compile("\n" * block.line + block.program(), page, "exec"), names)
            else:
                done = subprocess.run(
                    ["bash", "-e", "-o", "pipefail", "-c", block.program()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                printed = done.stdout
                print(printed, flush=True)
                assert done.returncode == 0, f"{where}: exit code {done.returncode}"


if __name__ == "__main__":
    run(sys.argv[1])
