"""The check of terms: literal input, literal output."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "terms.py"

TEXT = '''\
def settle_options(x):
    """A table that is settled; no upright
    product, and no dropout that is drawn
    anew.
    """
    log_total = x.logsum  # the other way
    # round
    return HeadWish(turn_right(slide_back(x)), slopes=1)
'''
HITS = [
    (1, "settle", "resolve"),
    (2, "settled", "resolved"),
    (2, "upright", "transposed, or not transposed"),
    (3, "drawn anew", "reinitialized"),
    (6, "log total", "logsumexp"),
    (6, "logsum", "logsumexp"),
    (6, "way round", "transposed, or the order of the axes"),
    (8, "wish", "request (HeadRequest for a head)"),
    (8, "turn right", "roll"),
    (8, "slide back", "rel_unshift"),
    (8, "slope", "gradient, cotangent, or d_x for the derivative with respect to x"),
]
# Words that contain a term, or that stand apart.
CLEAN = '''\
ACTIVATIONS = ("hardswish", "swish", "logsumexp")
"""Returns floor(x). The window slid; a sliding sum. Draw a card anew. It turns right."""
'''


def run(*arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, SCRIPT, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stdout


def test_terms_are_reported_with_line_and_replacement(tmp_path):
    path = tmp_path / "some.py"
    path.write_text(TEXT, encoding="utf-8")
    code, printed = run(path)
    assert code == 1
    assert printed == "".join(f"{path}:{line}: {term} -> {instead}\n" for line, term, instead in HITS)


def test_other_words_are_not_reported(tmp_path):
    path = tmp_path / "some.py"
    path.write_text(CLEAN, encoding="utf-8")
    assert run(path) == (0, "")


@pytest.mark.parametrize("name", ["CHANGELOG.md", "scripts/terms.py", "tests/test_terms.py"])
def test_files_with_a_reason_are_not_checked(name):
    assert (ROOT / name).is_file()
    assert run(ROOT / name) == (0, "")
