"""Damaged tokenizer files: one clear line, or a tokenizer that encodes and decodes.

Each file is tried in a process of its own kind, so that a native crash, a hang or an explosion of memory is seen.
``-m long`` tries 5,000 of each kind and writes what became of them to ``benchmarks/results/fuzz_tokenizers.json``.
"""

import collections
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import tokenizer_files
from tests.fuzz.tokenizer_files import KINDS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "fuzz_tokenizers.json"
# What the first runs found, and no longer find.
MENDED = (
    "ids that are negative, of 2**40, fractions, lists, texts: accepted, or a traceback",
    "two pieces with one id, or an added token with the id of another piece: accepted, then wrong texts or offsets",
    "pieces that are not UTF-8: UnicodeDecodeError",
    "lists, numbers and texts in place of objects in tokenizer.json and tokenizer_config.json: tracebacks",
    "a damaged precompiled_charsmap in tokenizer.json: a panic of the library, which no `except Exception` catches",
    "tokenizer.json whose special tokens are only pieces: [MASK] in a text was cut into pieces",
    "a Unigram model without unk_id: an exception at the first unknown character",
    "vocab.json without [UNK], or with a piece that spells no bytes: exceptions when encoding and decoding",
    "merges that end in the middle of a piece: a panic of the library",
    "a model that names another piece as its unknown one: wrong sizes of pieces, an exception for offsets",
    "a model of whole words in corpora: unknown words that are neighbours had one id each instead of one",
    "texts with U+2581 in corpora, under other normalizers than nmt_nfkc: another id sequence than alone",
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    tokenizer_files.write_bases(folder)
    return folder


def outcomes(bases: Path, work: Path, kind: str, seed: int, count: int) -> list[dict]:
    """What became of each file; a crash of the process counts as "crashed" and the rest goes on in a new one."""
    found: list[dict] = []
    while len(found) < count:
        command = [sys.executable, tokenizer_files.__file__, bases, work, kind, seed, len(found), count - len(found)]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, cwd=ROOT, timeout=1000)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        found += [line for line in lines if "what" in line]
        if done.returncode:
            assert lines, done.stderr
            found.append({"index": len(found), "what": "crashed", "line": f"{done.returncode}: {done.stderr[-2000:]}"})
    return found


def check(found: list[dict], kind: str, seed: int) -> collections.Counter:
    for one in found:
        assert one["what"] in ("used", "refused"), f"number {one['index']} of {kind!r}, seed {seed}: {one['line']}"
    return collections.Counter(one["what"] for one in found)


@pytest.mark.parametrize("kind", KINDS)
def test_one_line_or_a_tokenizer_that_works(kind, bases, tmp_path):
    counted = check(outcomes(bases, tmp_path, kind, 1, 60), kind, 1)
    assert min(counted["used"], counted["refused"]) > 2


@pytest.mark.long
def test_five_thousand_of_each_kind(bases, tmp_path):
    result: dict = {"seed": 2, "found and mended": MENDED}
    for kind in KINDS:
        found = outcomes(bases, tmp_path, kind, 2, 5000)
        lines = collections.Counter()
        for one in found:
            text = re.sub(r"\d+", "N", one["line"].replace(str(tmp_path / "mutant"), "FOLDER"))[:70]
            lines[text] += bool(text)
        result[kind] = {
            "files": len(found),
            **check(found, kind, 2),
            "other exceptions, crashes, hangs": 0,
            "slowest file took less than two seconds": max(one["seconds"] for one in found) < 2,
            "most frequent messages": dict(lines.most_common(12)),
        }
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
