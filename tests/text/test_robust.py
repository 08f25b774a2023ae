"""Odd input, pickles, threads, and a fresh process without jax."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

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
                any_tok(texts, return_offsets_mapping=True, padding="longest"),
                any_tok(same, return_offsets_mapping=True, padding="longest"),
            )
            assert a.input_ids.tolist() == b.input_ids.tolist() == any_tok(texts, padding="longest").input_ids.tolist()
            assert a.offset_mapping.tolist() == b.offset_mapping.tolist()
    enc = any_tok(["one", "\ud800"], is_split_into_words=True)
    assert set(enc.word_ids[0].tolist()) == {-1, 0, 1}


def test_nul_is_text(any_tok):
    ids = any_tok("a\x00b").input_ids[0]
    assert any_tok.decode(ids) == "a\x00b"
    offsets = any_tok("a\x00b", return_offsets_mapping=True).offset_mapping[0]
    assert [span for span in offsets[1:-1].tolist() if span[0] < span[1]] == [[0, 1], [1, 2], [2, 3]]
    assert any_tok("a\x00b" * 10_000, max_length=16).input_ids.shape == (1, 16)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["one two three ", "x", "漢", " ", "[MASK]" + "x" * 200])
def test_ten_megabytes(unit, small, v3):
    """No limit but memory: the first row of the long text begins as that of a short one does."""
    text = unit * (10_000_000 // len(unit.encode()))
    for tok in (v3, small["bpe"]) if unit in ("one two three ", "x") else (v3,):
        ids = tok(text, max_length=512).input_ids[0]
        if unit == " ":
            assert ids.tolist() == [1, 2]
            continue
        assert len(ids) == 512
        if len(unit) > 1:
            assert ids[:150].tolist() == tok(unit * 200, max_length=512).input_ids[0, :150].tolist()


def test_offsets_of_a_long_text(v3):
    text = "A ﬁne… day. " * 50_000
    enc = v3(text, return_offsets_mapping=True)
    (i, j) = enc.offset_mapping[0, -2]
    assert text[i:j] == "."
    assert j == len(text) - 1


def test_pickled_it_is_the_same(any_tok):
    again = pickle.loads(pickle.dumps(any_tok))
    assert again.fingerprint() == any_tok.fingerprint()
    a, b = (t(LINES, return_offsets_mapping=True, padding="longest") for t in (any_tok, again))
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


def test_no_jax_and_nothing_printed(run_alone, tmp_path):
    """A worker that only tokenizes imports no jax: this package imports nothing above it."""
    script = f"""
from deberta_jax.text import load_tokenizer, train_tokenizer
names = "one two three four five six seven eight nine ten".split()
for kind, size in (("spm", 360), ("bpe", 280)):
    train_tokenizer([f"{{a}} {{b}}" for a in names for b in names], size, {str(tmp_path)!r} + kind, kind=kind)
    tok = load_tokenizer({str(tmp_path)!r} + kind)
    tok(["one two"] * 5000, padding="longest", return_offsets_mapping=True)
print({{"jax", "jaxlib", "flax", "torch", "transformers"}} & {{name.split(".")[0] for name in sys.modules}})
"""
    assert run_alone(script) == "set()\n"
