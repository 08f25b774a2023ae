"""Truncation, windows, padding, words and errors of the one call; `tokenizers` is the reference of truncation."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from deberta_jax.errors import InputError
from deberta_jax.text import Encoding
from deberta_jax.text.encoding import longest_first, window_rows

TEXT = "When one and two met, two said: it isn't three's turn."


@pytest.fixture(scope="module")
def library():
    """Words w0, w1, ... as ids, so that only lengths matter."""
    vocab = {"[CLS]": 0, "[SEP]": 1} | {f"w{i}": i + 2 for i in range(40)}
    library = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[CLS]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    return library


def words(count, first=0):
    return " ".join(f"w{i}" for i in range(first, first + count))


def test_longest_first_equals_the_library_for_all_small_lengths(library):
    """Ties included: cut to an odd room, the odd piece stays with the longer, and with the second of two equals."""
    sizes = list(itertools.product(range(9), range(9)))
    for room in range(13):
        library.enable_truncation(room + 3, strategy="longest_first")
        rows = library.encode_batch([(words(a), words(b, 20)) for a, b in sizes])
        expected = [(row.sequence_ids.count(0), row.sequence_ids.count(1)) for row in rows]
        keep = longest_first(*np.array(sizes).T, room)
        assert list(zip(*(k.tolist() for k in keep), strict=True)) == expected


def test_longest_first_takes_one_piece_at_a_time_from_the_longer():
    for a, b, room in itertools.product(range(8), range(8), range(16)):
        keep = [a, b]
        tied = False
        while sum(keep) > room:
            tied |= keep[0] == keep[1]
            keep[0 if keep[0] > keep[1] else 1] -= 1
        got = [int(k[0]) for k in longest_first(np.array([a]), np.array([b]), room)]
        # Where the two were equal on the way, who gives first is the tie's matter; the test above says who.
        assert got == keep or (tied and sorted(got) == sorted(keep))


def test_truncation_never_swaps_the_segments(tok):
    """Microsoft's code sorts the segments by length while truncating."""
    short, long = "one", TEXT
    for a, b in ((short, long), (long, short), (long, long)):
        enc = tok(a, b, max_length=13)
        first, second = (tok(t, add_special_tokens=False).input_ids[0] for t in (a, b))
        ids, types = enc.input_ids[0], enc.token_type_ids[0]
        kept_a, kept_b = ids[types == 0][1:-1], ids[types == 1][:-1]
        assert kept_a.tolist() == first[: len(kept_a)].tolist()
        assert kept_b.tolist() == second[: len(kept_b)].tolist()
        assert len(ids) == 13


def test_only_first_and_only_second(tok):
    whole = tok(TEXT, "one two")
    n = whole.input_ids.shape[1]
    second = int(whole.token_type_ids.sum()) - 1
    cut = tok(TEXT, "one two", max_length=n - 4, truncation="only_first")
    assert cut.input_ids.shape[1] == n - 4
    assert cut.token_type_ids.sum() - 1 == second
    assert cut.input_ids[0, : n - 4 - second - 2].tolist() == whole.input_ids[0, : n - 4 - second - 2].tolist()
    cut = tok("one two", TEXT, max_length=n - 4, truncation="only_second")
    assert tok.decode(cut.input_ids[0, : cut.input_ids.shape[1] - int(cut.token_type_ids.sum())]) == "one two"
    for texts, truncation in ((("one", TEXT), "only_first"), ((TEXT, "one"), "only_second")):
        with pytest.raises(InputError, match="cannot help"):
            tok(*texts, max_length=6, truncation=truncation)


def test_no_truncation(tok):
    assert tok(TEXT, max_length=5, truncation=False).input_ids.shape == tok(TEXT).input_ids.shape
    with pytest.raises(InputError, match="more than max_length=5"):
        tok(TEXT, max_length=5, truncation=False, padding="max_length")


@pytest.mark.parametrize("stride", [0, 1, 3])
@pytest.mark.parametrize("pair", [False, True])
def test_windows_equal_the_library(library, stride, pair):
    for length, room in itertools.product(range(25), (4, 7, 20)):
        library.enable_truncation(
            room + (5 if pair else 2), stride=stride, strategy="only_second" if pair else "only_first"
        )
        row = library.encode(words(2, 30), words(length)) if pair else library.encode(words(length))
        expected = []
        for window in [row, *row.overflowing]:
            kept = [i for i, s in zip(window.ids, window.sequence_ids, strict=True) if s == (1 if pair else 0)]
            expected.append((kept[0] - 2 if kept else 0, len(kept)))
        fixed, windowed = np.array([2 if pair else 0]), np.array([length])
        rows = window_rows(
            fixed if pair else windowed, windowed if pair else fixed, room + (2 if pair else 0), stride, pair
        )
        start, count = (rows.b_start, rows.b_count) if pair else (rows.a_start, rows.a_count)
        assert list(zip(start.tolist(), count.tolist(), strict=True)) == expected


def test_windows_cover_long_texts(tok):
    texts = ["one", TEXT * 5, "", TEXT]
    enc = tok(texts, max_length=16, stride=4, padding="max_length")
    whole = tok(texts, add_special_tokens=False).input_ids
    assert enc.input_ids.shape == (len(enc.overflow_to_sample_mapping), 16)
    assert sorted(set(enc.overflow_to_sample_mapping.tolist())) == [0, 1, 2, 3]
    for sample, ids in enumerate(whole):
        rows = enc.input_ids[enc.overflow_to_sample_mapping == sample]
        masks = enc.attention_mask[enc.overflow_to_sample_mapping == sample]
        kept = [row[mask == 1][1:-1].tolist() for row, mask in zip(rows, masks, strict=True)]
        joined = kept[0]
        for window in kept[1:]:
            assert joined[-4:] == window[:4]
            joined = joined + window[4:]
        assert joined == ids.tolist()


def test_windows_of_the_second_segment_repeat_the_first(tok):
    enc = tok(["one two", "three"], [TEXT * 3, TEXT], max_length=20, stride=3, truncation="only_second")
    question = tok(["one two", "three"]).input_ids
    for sample, ids, types in zip(enc.overflow_to_sample_mapping, enc.input_ids, enc.token_type_ids, strict=True):
        assert ids[types == 0].tolist() == question[sample].tolist()
        assert len(ids) <= 20


def test_windows_that_cannot_be(tok):
    with pytest.raises(InputError, match="stride needs max_length"):
        tok(TEXT, stride=2)
    with pytest.raises(InputError, match="only_first"):
        tok(TEXT, TEXT, stride=2, max_length=10)
    with pytest.raises(InputError, match="which stride=5 does not fit into"):
        tok(TEXT, stride=5, max_length=7)
    with pytest.raises(InputError, match="leaves 0 tokens for a window"):
        tok(TEXT, TEXT, stride=0, max_length=7, truncation="only_second")


def test_padding(tok):
    texts = ["one", TEXT]
    n = tok(TEXT).input_ids.shape[1]
    ragged = tok(texts)
    assert [len(ids) for ids in ragged.input_ids] == [3, n]
    assert all(ids.dtype == np.int32 for ids in ragged.input_ids)
    longest = tok(texts, padding="longest")
    assert longest.input_ids.shape == (2, n)
    assert longest.input_ids[0].tolist() == [*ragged.input_ids[0].tolist(), *[tok.pad_id] * (n - 3)]
    assert longest.attention_mask.tolist() == [[1] * 3 + [0] * (n - 3), [1] * n]
    assert tok(texts, padding="max_length", max_length=64).input_ids.shape == (2, 64)
    assert tok(texts, padding="buckets", buckets=[4, 8, 48, 64]).input_ids.shape == (2, 48)
    assert tok(["one"], padding="buckets", buckets=[4, 8, 48, 64]).input_ids.shape == (1, 4)
    assert tok(texts, padding="longest", pad_to_multiple_of=32).input_ids.shape == (2, 32 * -(-n // 32))
    with pytest.raises(InputError, match="more than the largest bucket, 8"):
        tok(texts, padding="buckets", buckets=[4, 8])


def test_special_tokens_mask_and_bare_pieces(tok):
    enc = tok(["one", TEXT], ["two", "three"], padding="longest", return_special_tokens_mask=True)
    ids, special = enc.input_ids, enc.special_tokens_mask
    assert (special == np.isin(ids, [tok.pad_id, tok.cls_id, tok.sep_id])).all()
    bare = tok("one", "two", add_special_tokens=False)
    assert bare.input_ids[0].tolist() == ids[0][special[0] == 0].tolist()
    assert bare.token_type_ids[0].tolist() == enc.token_type_ids[0][special[0] == 0].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_length": 8},
        {"max_length": 2},
        {"max_length": 40, "padding": "max_length"},
        {"padding": "buckets", "buckets": [16, 64]},
        {"padding": "longest", "pad_to_multiple_of": 8},
        {"max_length": 7, "padding": "longest", "pad_to_multiple_of": 8},
        {"truncation": False},
        {"truncation": "only_first", "max_length": 9},
    ],
)
def test_one_text_is_a_batch_of_one(tok, options):
    """One text goes a short way; it must be the way of batches, which another text in the batch forces."""
    for text in (TEXT, "", "one [MASK] two", "İ é"):
        alone, in_list = tok(text, **options), tok([text], **options)
        forced = tok([text], **options, return_offsets_mapping=True)
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            assert alone[name].dtype == in_list[name].dtype == forced[name].dtype == np.int32
            assert alone[name].tolist() == in_list[name].tolist() == forced[name].tolist()


def test_encode_ragged(tok):
    texts, pairs = ["one", TEXT, ""], ["two", "three four", TEXT]
    rows = tok.encode_ragged(texts, pairs, max_length=12)
    enc = tok(texts, pairs, max_length=12)
    assert len(rows) == 3
    for (ids, types), a, b in zip(rows, enc.input_ids, enc.token_type_ids, strict=True):
        assert ids.dtype == types.dtype == np.int32
        assert ids.tolist() == a.tolist()
        assert types.tolist() == b.tolist()
    assert tok.encode_ragged([]) == []


def test_encoding_is_a_frozen_mapping(tok):
    enc = tok(TEXT, return_offsets_mapping=True)
    assert enc.keys() == ["input_ids", "attention_mask", "token_type_ids", "offset_mapping"]
    assert dict(enc)["input_ids"] is enc.input_ids is enc["input_ids"]
    with pytest.raises(KeyError, match="word_ids"):
        enc["word_ids"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        enc.input_ids = None
    assert isinstance(enc, Encoding)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5,), "texts is int; give a str or a list of str"),
        ((b"bytes",), "texts is bytes"),
        ((None,), "texts is NoneType"),
        ((["one", None],), r"texts\[1\] is NoneType, not str"),
        ((["one", 2.5], ["a", "b"]), r"texts\[1\] is float, not str"),
        ((["one"], ["a", "b"]), "1 texts but 2 text_pairs"),
        ((["one"], [7]), r"text_pairs\[0\] is int"),
        (([("one", "two"), "three"],), r"texts\[1\] is 'three', and others are pairs of two str"),
        (([("one", "two", "three")],), r"texts\[0\] is \('one', 'two', 'three'\)"),
        (([("one", "two")], ["three"]), "texts holds pairs already"),
    ],
)
def test_what_is_not_text_is_named(tok, arguments, message):
    with pytest.raises(InputError, match=message):
        tok(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": "longest"}, "truncation='longest': expected True, False or one of .*mean 'longest_first'"),
        ({"padding": "longest_first"}, "padding='longest_first': expected .*; did you mean 'longest'"),
        ({"return_tensors": "pt"}, "return_tensors='pt': .* torch.from_numpy"),
        ({"return_tensors": "jax"}, "return_tensors='jax': .* models take them as they are"),
        ({"return_tensors": "tf"}, "return_tensors='tf': encodings hold arrays of NumPy, 'np'"),
        ({"padding": "max_length"}, "needs max_length"),
        ({"padding": "buckets"}, "go together"),
        ({"buckets": [8]}, "go together"),
        ({"padding": "buckets", "buckets": [8, 4]}, "ascending"),
        ({"pad_to_multiple_of": 8}, "needs a padding"),
        ({"padding": "longest", "pad_to_multiple_of": 0}, "positive"),
        ({"stride": -1, "max_length": 8}, "negative"),
        ({"max_length": 1}, "max_length=1 does not hold the 2 special tokens"),
        ({"truncation": "only_second"}, "needs text_pairs"),
    ],
)
def test_options_that_contradict(tok, options, message):
    for texts in ("one", ["one", "two"]):
        with pytest.raises(InputError, match=message) as caught:
            tok(texts, **options)
        assert "\n" not in str(caught.value)


def test_words_that_are_no_words(tok):
    with pytest.raises(InputError, match="texts is one str"):
        tok("one two", is_split_into_words=True)
    with pytest.raises(InputError, match=r"texts\[1\]\[0\] is int"):
        tok([["one"], [2]], is_split_into_words=True)


def test_empty_batches_and_texts(tok):
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert tok([], padding="longest")[name].shape == (0, 0)
    assert tok([], padding="max_length", max_length=8).input_ids.shape == (0, 8)
    assert tok([], return_offsets_mapping=True, padding="longest").offset_mapping.shape == (0, 0, 2)
    assert tok("").input_ids.tolist() == [[tok.cls_id, tok.sep_id]]
    assert tok("", "").input_ids.tolist() == [[tok.cls_id, tok.sep_id, tok.sep_id]]
    assert tok([[]], is_split_into_words=True).input_ids.tolist() == [[tok.cls_id, tok.sep_id]]
    assert tok("", return_offsets_mapping=True, add_special_tokens=False).offset_mapping.shape == (1, 0, 2)
