"""Rows of running text, contiguous and packed, and their batches: which tokens, in which order, how often."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deberta_jax.data.corpus import Corpus, open_corpus, read_documents
from deberta_jax.data.documents import CorpusOptions
from deberta_jax.data.masked_batches import HeldOutBatches, MaskedBatches, Masker, shuffled_index
from deberta_jax.data.rows import lay_out, pack_histogram
from deberta_jax.errors import InputError
from deberta_jax.sharding import RowShare
from deberta_jax.text.mlm_masking import Masking, Vocabulary
from tests.made import make_tokenizer

PAD, CLS, SEP, SIZE = 0, 1, 2, 1000
SPECIAL = np.zeros(SIZE, bool)
SPECIAL[[0, 1, 2, 3, 999]] = True
MASKER = Masker(Vocabulary(SPECIAL, ~SPECIAL, np.flatnonzero(~SPECIAL), 999), Masking())


def corpus_of(lengths, parts=1):
    """Documents of these lengths: the k-th token of the corpus is 4 + k % 990."""
    ids = (4 + np.arange(sum(lengths)) % 990).astype(np.uint16)
    return Corpus(tuple(np.array_split(ids, parts)), np.array(lengths), np.bincount(ids, minlength=SIZE), CLS, SEP, PAD)


def everything(rows):
    return rows.read(np.arange(len(rows)))


@pytest.mark.parametrize("parts", [1, 3])
def test_contiguous_rows_are_the_text_itself_cut(parts):
    corpus = corpus_of([3, 5, 2, 13], parts)
    rows = lay_out(corpus, 6, "contiguous")
    found = everything(rows)
    assert found["input_ids"].dtype == np.int32
    assert found["input_ids"].shape == (5, 6)
    assert (found["input_ids"][:, [0, -1]] == [CLS, SEP]).all()
    assert found["input_ids"][:, 1:-1].reshape(-1).tolist() == [*range(4, 24)]
    assert found["attention_mask"].all()
    with pytest.raises(InputError, match="23 tokens; one row needs 24"):
        lay_out(corpus, 26, "contiguous")


def packed_texts(found):
    """Every text of the rows, which stand between [CLS] and [SEP] in segments 1, 2, ..., padding after them."""
    texts = []
    for ids, segments in zip(found["input_ids"], found["segment_ids"], strict=True):
        real = int((segments > 0).sum())
        assert (ids[real:] == PAD).all()
        assert sorted(set(segments[:real].tolist())) == [*range(1, segments.max() + 1)]
        assert (np.diff(segments[:real]) >= 0).all()
        for number in range(1, segments.max() + 1):
            text = ids[segments == number].tolist()
            assert (text[0], text[-1]) == (CLS, SEP)
            texts.append(text[1:-1])
    return texts


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(4, 40), st.integers(1, 4))
def test_packed_rows_hold_every_document_once_and_none_with_another(lengths, length, parts):
    rows = lay_out(corpus_of(lengths, parts), length, "packed")
    found = everything(rows)
    body = length - 2
    expected = []
    for end, size in zip(np.cumsum(lengths), lengths, strict=True):
        document = [4 + k % 990 for k in range(end - size, end)]
        expected += [document[i : i + body] for i in range(0, size, body)]
    assert sorted(packed_texts(found)) == sorted(expected)
    for i in range(len(rows)):
        assert rows.tokens(np.array([i])) == (found["segment_ids"][i] > 0).sum()
    assert rows.tokens(np.arange(len(rows))) == (found["segment_ids"] > 0).sum()


def test_packing_leaves_little_room_and_its_cost_is_that_of_the_lengths():
    lengths = np.random.default_rng(0).integers(3, 400, 300_000)
    counts = np.bincount(lengths, minlength=513)
    patterns = pack_histogram(counts, 512)
    assert sum(pattern.repeats for pattern in patterns) * 512 < 1.01 * lengths.sum()
    again = np.zeros(513, int)
    for pattern in patterns:
        assert sum(pattern.sizes) <= 512
        np.add.at(again, np.array(pattern.sizes), pattern.repeats)
    np.testing.assert_array_equal(again, counts)
    assert len(pack_histogram(counts * 1000, 512)) < 3 * 512


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 300), st.integers(0, 2**63), st.integers(0, 5))
def test_an_epoch_visits_every_row_once(count, seed, epoch):
    index = shuffled_index(epoch * count + np.arange(count), count, seed)
    assert sorted(index.tolist()) == [*range(count)]


def test_orders_are_random_and_differ_by_epoch_and_seed():
    first = np.stack([shuffled_index(np.arange(12), 12, seed) for seed in range(2400)])
    for place in (0, 5, 11):
        assert stats.chisquare(np.bincount(first[:, place], minlength=12)).pvalue > 1e-4
    pairs = np.bincount(first[:, 3] * 12 + first[:, 4], minlength=144).reshape(12, 12)
    assert stats.chisquare(pairs[~np.eye(12, dtype=bool)]).pvalue > 1e-4
    long = shuffled_index(np.arange(20_000), 10_000, 0).reshape(2, -1)
    assert abs(np.corrcoef(long[0], np.arange(10_000))[0, 1]) < 0.04
    assert abs(np.corrcoef(long)[0, 1]) < 0.04


def batches(layout, **changes):
    rows = lay_out(corpus_of(np.random.default_rng(3).integers(1, 90, 200).tolist()), 40, layout)
    return MaskedBatches(**({"rows": rows, "masker": MASKER, "batch_size": 16, "steps": 50, "seed": 0} | changes))


def restored(batch):
    """The rows before they were masked."""
    ids = batch["input_ids"].copy()
    row, column = np.nonzero(batch["positions"] >= 0)
    place = batch["positions"][row, column]
    ids[row, place] = batch["labels"][batch["positions"] >= 0]
    return ids


@pytest.mark.parametrize("layout", ["packed", "contiguous"])
def test_every_row_comes_once_an_epoch(layout):
    source = batches(layout)
    count = len(source.rows)
    seen = np.concatenate([restored(source[step]) for step in range(2 * count // 16 + 1)])
    every = sorted(map(tuple, everything(source.rows)["input_ids"].tolist()))
    first, second = seen[:count].tolist(), seen[count : 2 * count].tolist()
    assert sorted(map(tuple, first)) == sorted(map(tuple, second)) == every
    assert first != second


@pytest.mark.parametrize("layout", ["packed", "contiguous"])
def test_an_example_follows_from_seed_and_position_alone(layout):
    source, wide = batches(layout), batches(layout, batch_size=32)
    shares = [batches(layout, share=RowShare(blocks, 4)) for blocks in ((0, 3), (1,), (2,))]
    for step in (4, 0, 20):
        parts = [share[step] for share in shares]
        whole, twice = source[step], wide[step // 2]
        for name, array in whole.items():
            np.testing.assert_array_equal(array[[*range(4), *range(12, 16)]], parts[0][name])
            np.testing.assert_array_equal(array[4:8], parts[1][name])
            np.testing.assert_array_equal(array[8:12], parts[2][name])
            half = slice(16, 32) if step % 2 else slice(16)
            np.testing.assert_array_equal(array, twice[name][half])
    assert not np.array_equal(source[0]["input_ids"], batches(layout, seed=1)[0]["input_ids"])
    keys = [tuple(key) for step in range(50) for key in source[step]["draws"].tolist()]
    assert len(set(keys)) == 50 * 16, "every visit of a row draws new masks"
    assert not set(keys) & {tuple(key) for key in batches(layout, seed=1)[0]["draws"].tolist()}
    assert source.position(3) == 48
    size = source.size(3)
    assert (size.examples, size.token_slots) == (16, 16 * 40)
    there = source[3].get("segment_ids", source[3].get("attention_mask"))
    assert there is not None
    assert size.tokens == (there > 0).sum()
    example = next(iter(shares[0].examples()))
    assert {name: array.shape for name, array in example.items()} == {n: a.shape for n, a in source[0].items()}


def test_packed_targets_lie_in_texts():
    source = batches("packed")
    for step in range(10):
        batch = source[step]
        ids, there = restored(batch), batch["positions"] >= 0
        row, _ = np.nonzero(there)
        place = batch["positions"][there]
        assert (batch["segment_ids"][row, place] > 0).all()
        assert not SPECIAL[ids[row, place]].any()
        tokens = ((batch["segment_ids"] > 0) & ~SPECIAL[ids]).sum(axis=1)
        np.testing.assert_array_equal(there.sum(axis=1), np.maximum(1, np.rint(0.15 * tokens)))


@pytest.mark.parametrize("layout", ["packed", "contiguous"])
def test_held_out_rows_come_once_in_order_and_always_masked_alike(layout):
    rows = batches(layout).rows
    held_out = HeldOutBatches(rows=rows, masker=MASKER, batch_size=32, seed=0)
    found = [held_out[i] for i in range(len(held_out))]
    ids = np.concatenate([restored(batch) for batch in found])
    np.testing.assert_array_equal(ids[: len(rows)], everything(rows)["input_ids"])
    last, beyond = found[-1], len(rows) % 32
    assert beyond, "the last batch is not full"
    assert all(len(array) == 32 for array in last.values())
    assert (last["positions"][beyond:] == -1).all()
    assert (last["labels"][beyond:] == -100).all()
    assert not (last["segment_ids"] if layout == "packed" else last["attention_mask"])[beyond:].any()
    for batch, again in zip(found, map(held_out.__getitem__, range(len(found))), strict=True):
        np.testing.assert_array_equal(batch["positions"], again["positions"])
    share = HeldOutBatches(rows=rows, masker=MASKER, batch_size=32, seed=0, share=RowShare((1,), 2))
    np.testing.assert_array_equal(share[len(found) - 1]["input_ids"], last["input_ids"][16:])


def test_files_of_text_become_documents(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "a.txt").write_bytes("ban bast\n\n  \nbast\u2028ban\nkon\r\n\r\nkon kon".encode())
    for documents, expected in (
        ("line", ["ban bast", "bast\u2028ban", "kon", "kon kon"]),
        ("paragraph", ["ban bast", "bast\u2028ban\nkon", "kon kon"]),
        ("file", ["ban bast\n\n  \nbast\u2028ban\nkon\r\n\r\nkon kon"]),
    ):
        source = CorpusOptions(documents=documents)
        assert read_documents(tmp_path / "a.txt", source) == expected
        corpus = open_corpus([tmp_path / "a.txt"], tokenizer, source)
        ids, lengths = tokenizer.encode_flat(expected)
        np.testing.assert_array_equal(corpus.parts[0], ids)
        np.testing.assert_array_equal(corpus.lengths, lengths)
        np.testing.assert_array_equal(corpus.unigrams, np.bincount(ids, minlength=tokenizer.vocab_size))
        assert corpus.tokens == len(ids)


def test_files_that_are_no_text_are_refused(tmp_path):
    for name, content, message in (
        ("a.txt", b"\n \n", "no text"),
        ("b.txt", b"ab\xff", "not UTF-8 at byte 2"),
        ("c.csv", b"text\na", "'.csv' is not known"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_documents(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_documents(tmp_path / "none.txt")
    (tmp_path / "d.txt").mkdir()
    with pytest.raises(InputError, match="is a directory"):
        read_documents(tmp_path / "d.txt")
