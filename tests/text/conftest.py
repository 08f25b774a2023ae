"""Tokenizers of the released vocabularies, and lines that try them."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deberta_jax import text as package
from deberta_jax.text import Tokenizer, load_tokenizer, train_tokenizer

# Ranges of code points that differ in script, width, direction, composition or plane.
BLOCKS = [
    (0x00, 0x20),
    (0x20, 0x7F),
    (0x7F, 0x100),
    (0x100, 0x250),
    (0x300, 0x370),
    (0x370, 0x530),
    (0x590, 0x800),
    (0x900, 0x1000),
    (0x1100, 0x1200),
    (0x1E00, 0x2000),
    (0x2000, 0x2070),
    (0x2070, 0x2C00),
    (0x3000, 0x3400),
    (0x4E00, 0xA000),
    (0xAC00, 0xD7B0),
    (0xE000, 0xE100),
    (0xF900, 0xFF00),
    (0xFF00, 0x10000),
    (0x10000, 0x11000),
    (0x1D400, 0x1D800),
    (0x1F000, 0x1FB00),
    (0x20000, 0x20100),
    (0xE0000, 0xE0200),
    (0x10FF00, 0x110000),
    (0x00, 0x110000),
]
SEQUENCES = [
    "hello",
    " the ",
    "don't",
    "'ll",
    "   ",
    "\n",
    "\t",
    "\x00",
    "\u200b",
    "\u00a0",
    "e\u0301",
    "a\u0301\u0323",
    "ﬁ",
    "½",
    "…",
    "´",
    "ﷺ",
    "ĳ",
    "ｆｕｌｌ　ｗｉｄｔｈ",
    "שלום",
    "مرحبا",
    "\u202eabc\u202c",
    "\u2581",
    "\ufffd",
    "❤\ufe0f",
    "👩\u200d👩\u200d👧",
    "👍🏽",
    "🇩🇪",
    "🏴\U000e0067\U000e0062\U000e007f",
    "Ǆ",
    "İ",
    "ß",
    "Σς",
]


@pytest.fixture(scope="session")
def unicode_lines() -> Callable[..., list[str]]:
    """unicode_lines(count, seed=0): lines over all of Unicode except the special tokens and surrogates."""

    def make(count: int, seed: int = 0) -> list[str]:
        draw = random.Random(seed)
        lines = []
        for _ in range(count):
            parts = []
            for _ in range(draw.randint(0, 4)):
                if draw.random() < 0.4:
                    parts.append(draw.choice(SEQUENCES))
                else:
                    low, high = draw.choice(BLOCKS)
                    codes = [draw.randrange(low, high) for _ in range(draw.randint(1, 8))]
                    parts.append("".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000))
            lines.append("".join(parts))
        return lines

    return make


@pytest.fixture(scope="session")
def text_lines(data_dir: Path) -> list[str]:
    """Every line of every text file."""
    lines = []
    for path in sorted((data_dir / "text").glob("*.txt")):
        lines += path.read_text(encoding="utf-8").split("\n")
    assert len(lines) > 100_000
    return lines


@pytest.fixture(scope="session")
def v1_dir(data_dir: Path) -> Path:
    return data_dir / "tokenizers" / "deberta-v1"


@pytest.fixture(scope="session")
def v3_dir(data_dir: Path) -> Path:
    return data_dir / "tokenizers" / "deberta-v3"


@pytest.fixture(scope="session")
def v1(v1_dir: Path) -> Tokenizer:
    return load_tokenizer(v1_dir)


@pytest.fixture(scope="session")
def v3(v3_dir: Path) -> Tokenizer:
    return load_tokenizer(v3_dir)


@pytest.fixture(scope="session")
def released(v1: Tokenizer, v3: Tokenizer) -> dict[str, Tokenizer]:
    return {"v1": v1, "v3": v3}


PREAMBLE = """
import sys, types
above = types.ModuleType("deberta_jax")
above.__path__ = [{folder!r}]
sys.modules["deberta_jax"] = above
"""


@pytest.fixture(scope="session")
def run_alone() -> Callable[[str], str]:
    """run_alone(script): what it prints in a fresh process that has `deberta_jax.text` without the package above it.

    Fails where the script fails, warns or writes to stderr.
    """
    folder = str(Path(package.__file__).parents[1])

    def run(script: str) -> str:
        command = [sys.executable, "-W", "error", "-c", PREAMBLE.format(folder=folder) + script]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


@pytest.fixture(scope="session")
def small_lines() -> list[str]:
    """Text that needs no data folder: every pair of number words in a sentence."""
    return [f"When {a} and {b} met, {b} said: it isn't {a}'s turn." for a in NUMBERS for b in NUMBERS]


@pytest.fixture(scope="session")
def small(small_lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Tokenizers of both kinds trained here."""
    root = tmp_path_factory.mktemp("small")
    return {
        "spm": train_tokenizer(small_lines, 370, root / "spm"),
        "bpe": train_tokenizer(small_lines, 310, root / "bpe", kind="bpe"),
    }


@pytest.fixture(params=["spm", "bpe"])
def tok(request: pytest.FixtureRequest, small: dict[str, Tokenizer]) -> Tokenizer:
    return small[request.param]
