"""Rows of running text, and their masks: which rows, which tokens, how often."""

import numpy as np
import pytest
from scipy import stats

from deberta_jax.data.corpus import MaskedBatches, Masker, contiguous_rows, read_lines
from deberta_jax.errors import InputError

SPECIALS = (0, 1, 2, 3, 99)
MASKER = Masker(count=5, mask_id=99, random_ids=(4, 99), special_ids=SPECIALS)


class Characters:
    """A tokenizer of one token a character."""

    def encode_ragged(self, texts, text_pairs=None, max_length=None):
        ids = [np.array([1, *map(ord, text), 2], np.int32) for text in texts]
        return [(i, np.zeros_like(i)) for i in ids]


def test_rows_are_the_text_itself_cut_into_pieces():
    lines = ["abc", "defgh", "ij"]
    rows = contiguous_rows(Characters(), lines, 6)
    assert rows.dtype == np.int32
    assert rows.shape == (2, 6)
    assert (rows[:, 0] == 1).all()
    assert (rows[:, -1] == 2).all()
    assert "".join(map(chr, rows[:, 1:-1].reshape(-1))) == "abcdefgh"
    with pytest.raises(InputError, match="10 tokens; one row needs 14"):
        contiguous_rows(Characters(), lines, 16)


def batches(steps, rows=10, batch_size=4, seed=0):
    # Row i: [CLS], a token that names the row, ordinary tokens, [SEP].
    ids = np.random.default_rng(7).integers(20, 90, (rows, 20)).astype(np.int32)
    ids[:, 0], ids[:, -1], ids[:, 3] = 1, 2, 3
    return ids, MaskedBatches(ids, batch_size, steps, seed, MASKER)


def restored(batch):
    """The rows before they were masked."""
    ids = batch["input_ids"].copy()
    row, column = np.nonzero(batch["positions"] >= 0)
    ids[row, batch["positions"][row, column]] = batch["labels"][row, column]
    return ids


def test_every_row_comes_once_an_epoch_in_a_new_order():
    ids, source = batches(steps=10)
    assert len(source) == 10
    seen = np.concatenate([restored(source[step]) for step in range(10)])
    order = [int(np.flatnonzero((ids == row).all(axis=1))[0]) for row in seen]
    epochs = [order[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


def test_a_batch_follows_from_seed_and_step_alone():
    _, source = batches(steps=10)
    _, again = batches(steps=10)
    _, other = batches(steps=10, seed=1)
    for step in (3, 0, 9):
        for name, array in source[step].items():
            np.testing.assert_array_equal(array, again[step][name])
    assert not np.array_equal(source[0]["input_ids"], other[0]["input_ids"])
    assert not np.array_equal(source[0]["positions"], source[5]["positions"])


def test_special_tokens_are_never_predicted_and_every_other_place_equally_often():
    _, source = batches(steps=800)
    places = np.zeros(20)
    for step in range(800):
        batch = source[step]
        places += np.bincount(batch["positions"].reshape(-1), minlength=20)
        assert (np.diff(batch["positions"], axis=1) > 0).all()
    assert (places[[0, 3, 19]] == 0).all()
    ordinary = np.delete(places, [0, 3, 19])
    assert ordinary.sum() == 800 * 4 * 5
    assert stats.chisquare(ordinary).pvalue > 1e-4


def test_a_file_of_text_is_read_without_its_blank_lines(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("eins\n\n  \nzwei\u2028drei\n".encode())
    assert read_lines(path) == ["eins", "zwei\u2028drei"]
    path.write_bytes(b"\n \n")
    with pytest.raises(InputError, match="empty"):
        read_lines(path)
    path.write_bytes(b"ab\xff")
    with pytest.raises(InputError, match="not UTF-8 at byte 2"):
        read_lines(path)
    with pytest.raises(InputError, match="no such file"):
        read_lines(tmp_path / "none")
    with pytest.raises(InputError, match="cannot be read"):
        read_lines(tmp_path)
