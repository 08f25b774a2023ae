"""Odd input, pickles, threads, and a fresh process without jax."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deberta_jax import text as package

LINES = ["When one and two met", "", "it isn't [MASK]'s turn.", "\u200b", "é … 🤗"]


@pytest.fixture(params=["spm", "bpe", "v1", "v3"])
def any_tok(request, small):
    if request.param in small:
        return small[request.param]
    return request.getfixturevalue(request.param)


def test_lone_surrogates_are_read_as_the_replacement_character(any_tok):
    for broken, read in (("a\ud800b", "a\ufffdb"), ("\udfff", "\ufffd"), ("\ud83d\ude00", "\ufffd\ufffd")):
        for texts, same in ((broken, read), (["x", broken], ["x", read])):
            a, b = (
                any_tok(texts, return_offsets=True, padding="longest"),
                any_tok(same, return_offsets=True, padding="longest"),
            )
            assert a.input_ids.tolist() == b.input_ids.tolist() == any_tok(texts, padding="longest").input_ids.tolist()
            assert a.offsets.tolist() == b.offsets.tolist()
    enc = any_tok(["one", "\ud800"], is_split_into_words=True)
    assert set(enc.word_ids[0].tolist()) == {-1, 0, 1}


def test_nul_is_text(any_tok):
    ids = any_tok("a\x00b").input_ids[0]
    assert any_tok.decode(ids) == "a\x00b"
    offsets = any_tok("a\x00b", return_offsets=True).offsets[0]
    assert [span for span in offsets[1:-1].tolist() if span[0] < span[1]] == [[0, 1], [1, 2], [2, 3]]
    assert any_tok("a\x00b" * 10_000, max_length=16).input_ids.shape == (1, 16)


@pytest.mark.parametrize("unit", ["one two three ", "x", "漢", " ", "[MASK]"])
def test_ten_megabytes(unit, small, v3):
    size = 10_000_000 // len(unit.encode())
    for tok in (small["bpe"], v3) if unit != "[MASK]" else (v3,):
        text = unit * (size if unit != "[MASK]" else size // 20)
        enc = tok(text, max_length=512)
        assert enc.input_ids.shape[1] <= 512
        start = tok(unit * 600, max_length=100).input_ids[0]
        if unit in ("one two three ", "[MASK]"):
            assert enc.input_ids[0, :99].tolist() == start[:99].tolist()


def test_offsets_of_a_long_text(v3):
    text = "A ﬁne… day. " * 50_000
    enc = v3(text, return_offsets=True)
    (i, j) = enc.offsets[0, -2]
    assert text[i:j] == "."
    assert j == len(text) - 1


def test_pickled_it_is_the_same(any_tok):
    again = pickle.loads(pickle.dumps(any_tok))
    assert again.fingerprint() == any_tok.fingerprint()
    a, b = (t(LINES, return_offsets=True, padding="longest") for t in (any_tok, again))
    assert all((a[name] == b[name]).all() for name in dict(a))


def test_threads_share_it(any_tok):
    texts = [f"{line} {i}" for i in range(100) for line in LINES]
    expected = [ids.tolist() for ids in any_tok(texts).input_ids]
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda text: any_tok(text).input_ids[0].tolist(), texts))
    assert alone == expected


def test_batches_on_all_cores_equal_texts_one_by_one(any_tok, unicode_lines):
    lines = unicode_lines(6000, seed=7)
    assert sum(map(len, lines)) > 40_000
    batch = any_tok(lines).input_ids
    assert all(any_tok(line).input_ids[0].tolist() == ids.tolist() for line, ids in zip(lines, batch, strict=True))


def test_no_jax_and_nothing_printed(tmp_path):
    """A worker that only tokenizes imports no jax: this package imports nothing above it."""
    folder = Path(package.__file__).parent
    script = f"""
import sys, types
above = types.ModuleType("deberta_jax")
above.__path__ = [{str(folder.parent)!r}]
sys.modules["deberta_jax"] = above
from deberta_jax.text import load_tokenizer, train_tokenizer
names = "one two three four five six seven eight nine ten".split()
for kind in ("spm", "bpe"):
    lines = [f"{{a}} {{b}}" for a in names for b in names]
    train_tokenizer(lines, 360 if kind == "spm" else 280, {str(tmp_path)!r} + kind, kind=kind)
    tok = load_tokenizer({str(tmp_path)!r} + kind)
    tok(["one two"] * 5000, padding="longest", return_offsets=True)
bad = {{"jax", "jaxlib", "flax", "torch", "transformers"}} & {{name.split(".")[0] for name in sys.modules}}
assert not bad, bad
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
