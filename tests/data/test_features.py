"""Tokenised examples: what is cut and counted, and ids that the model does not have."""

import dataclasses

import numpy as np
import pytest

from deberta_jax.data.cache import cached_features
from deberta_jax.data.feature_checks import Bounds
from deberta_jax.data.feature_parts import join_features
from deberta_jax.data.features import (
    TOKEN,
    check_vocabulary,
    choice_features,
    make_features,
    span_features,
    word_features,
)
from deberta_jax.errors import InputError
from tests.made import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("features"))


def test_examples_are_what_the_tokenizer_says_and_cuts_are_counted(tokenizer):
    texts = ["ban", "ban ban ban ban ban ban", "ban ban ban ban", ""]
    pairs = ["tell", "tell tell", "tell", "tell"]
    for second in (None, pairs):
        whole = tokenizer.encode_ragged(texts, second)
        longest = max(len(ids) for ids, _ in whole)
        for limit in (longest + 1, longest, longest - 1, 5):
            features = make_features(tokenizer, texts, second, max_length=limit)
            assert features.cut == sum(len(ids) > limit for ids, _ in whole)
            assert features.lengths.max() == min(limit, longest)
            assert len(features) == 4
            for i, (ids, types) in enumerate(tokenizer.encode_ragged(texts, second, max_length=limit)):
                part = slice(features.starts[i], features.starts[i + 1])
                np.testing.assert_array_equal(features.ids[part], ids)
                np.testing.assert_array_equal(features.types[part], types)


def test_an_id_without_a_row_is_refused(tokenizer):
    features = make_features(tokenizer, ["ban [MASK]"], None, max_length=16)
    check_vocabulary(features, tokenizer.vocab_size, "f.csv")
    with pytest.raises(InputError, match=r"f.csv: token id \d+ is outside the model's vocabulary of 100"):
        check_vocabulary(features, 100, "f.csv")


SENTENCES = [["banban", "tell", "xyzzy"], ["ko"], ["mu"] * 30]


def test_the_first_token_of_each_word_has_its_tag(tokenizer):
    tags = [[3, 1, 2], [4], [i % 5 for i in range(30)]]
    features = word_features(tokenizer, SENTENCES, tags, max_length=12)
    assert features.level == TOKEN
    whole = tokenizer(SENTENCES, is_split_into_words=True).input_ids
    assert features.cut == sum(len(ids) > 12 for ids in whole) > 0
    assert features.lengths.max() <= 12
    owner = np.repeat(features.row, features.lengths)
    for row, (words, ids) in enumerate(zip(SENTENCES, tags, strict=True)):
        mine = owner == row
        begins = mine & (features.words >= 0)
        assert features.words[begins].tolist() == list(range(len(words))), "each word once, in order"
        assert features.labels[begins].tolist() == ids
        assert (features.labels[mine & ~begins] == -100).all()
    # The tokens of a word follow its first one.
    first = np.flatnonzero((owner == 0) & (features.words == 0))[0]
    second = np.flatnonzero((owner == 0) & (features.words == 1))[0]
    pieces = tokenizer(["banban"], add_special_tokens=False).input_ids[0]
    np.testing.assert_array_equal(features.ids[first:second], pieces)
    assert second - first == len(pieces) > 1


def test_answers_are_where_their_characters_are_in_every_window(tokenizer):
    context = "ban tell rimu kost lork test ban sall nirk muban" + " kon" * 10
    answers = {"rimu kost": 1, "ban": 1, "nirk muban": 1, "imu kos": 1}
    for text in answers:
        start = context.index(text)
        features = span_features(tokenizer, ["tell"], [context], [(start, start + len(text))], max_length=24, stride=6)
        assert len(features) > 2, "several windows"
        found = 0
        for window, (first, last) in enumerate(features.labels.tolist()):
            at = features.starts[window]
            offsets = features.offsets[at : features.starts[window + 1]]
            inside = offsets[offsets[:, 0] < offsets[:, 1]]
            whole = inside[0, 0] <= start and inside[-1, 1] >= start + len(text)
            assert ((first, last) != (0, 0)) == whole
            if whole:
                found += 1
                begin, end = offsets[first, 0], offsets[last, 1]
                # The fewest tokens that hold all of it.
                assert begin <= start
                assert end >= start + len(text)
                assert offsets[first, 1] > start
                assert offsets[last, 0] < start + len(text)
        assert found >= 1
    nothing = span_features(tokenizer, ["tell"], [context], [None], max_length=24, stride=6)
    assert (nothing.labels == 0).all()
    with pytest.raises(InputError, match=r"question 1 has \d+ tokens; --max-length 24 with --doc-stride 12"):
        span_features(tokenizer, ["tell sall nirk muban kost"], [context], None, max_length=24, stride=12)


def test_choices_that_an_example_lacks_have_no_tokens(tokenizer):
    features = choice_features(
        tokenizer,
        [["ban"] * 3, ["tell"] * 2],
        [["a", "b c", "d"], ["ko", "mu"]],
        max_length=16,
        labels=np.array([2, 0], np.int32),
    )
    assert len(features) == 2
    assert features.choices == 3
    assert features.lengths.reshape(2, 3).astype(bool).tolist() == [[True] * 3, [True, True, False]]
    encoded = tokenizer(["tell"], ["mu"])
    np.testing.assert_array_equal(features.ids[features.starts[4] : features.starts[5]], encoded.input_ids[0])


def test_features_are_made_once_and_mapped_from_the_disk(tokenizer, tmp_path):
    made = []

    def make():
        made.append(1)
        return [word_features(tokenizer, SENTENCES, [[0, 1, 2], [3], [4] * 30], max_length=12)]

    bounds = Bounds(vocab_size=tokenizer.vocab_size, labels=5, rows=3, max_length=12)
    first = cached_features({"a": [1, "b"]}, make, tmp_path, bounds)
    again = cached_features({"a": [1, "b"]}, make, tmp_path, bounds)
    assert len(made) == 1
    assert isinstance(again.ids, np.memmap)
    (whole,) = make()
    for field in dataclasses.fields(whole):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(whole, field.name))
        np.testing.assert_array_equal(getattr(first, field.name), getattr(whole, field.name))
    cached_features({"a": [2, "b"]}, make, tmp_path, bounds)
    assert len(made) == 3
    assert not list((tmp_path / "tokens").glob(".partial*"))


def test_features_of_parts_are_kept_as_numpy_writes_the_whole(tokenizer, tmp_path):
    """With choices that only a later part has, and in memory as well."""
    choices = [["a", "b c"], ["d", "e"], ["ko", "mu", "ri"], ["a", "b", "c", "d"]]
    right = np.array([1, 0, 2, 3], np.int32)

    def part(rows):
        firsts = [["tell"] * len(choices[i]) for i in rows]
        return choice_features(tokenizer, firsts, [choices[i] for i in rows], max_length=8, labels=right[list(rows)])

    whole, parts = part(range(4)), [part([0, 1]), part([2]), part([3])]
    assert [p.choices for p in parts] == [2, 3, 4]
    bounds = Bounds(vocab_size=tokenizer.vocab_size, rows=4, max_length=8)
    kept = cached_features("x", lambda: iter(parts), tmp_path, bounds)
    for found in (kept, join_features(parts)):
        for field in dataclasses.fields(whole):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(whole, field.name))
    (entry,) = (tmp_path / "tokens").iterdir()
    for name in ("ids", "types", "starts", "labels"):
        np.save(tmp_path / "whole.npy", getattr(whole, name))
        assert (entry / f"{name}.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_tokens_that_another_process_has_kept_meanwhile_stay(tokenizer, tmp_path):
    """It may be reading them."""
    theirs, bounds = [], Bounds(vocab_size=tokenizer.vocab_size, labels=5, rows=3, max_length=12)

    def make():
        features = word_features(tokenizer, SENTENCES, [[0, 1, 2], [3], [4] * 30], max_length=12)
        if not theirs:
            theirs.append(None)
            cached_features("x", make, tmp_path, bounds)
            (entry,) = (tmp_path / "tokens").glob("[!.]*")  # what the outer call writes has a hidden name
            theirs[0] = entry.stat().st_ino
        return [features]

    cached_features("x", make, tmp_path, bounds)
    (entry,) = (tmp_path / "tokens").iterdir()
    assert entry.stat().st_ino == theirs[0]
