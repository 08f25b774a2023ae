"""``pipeline("fill-mask", ...)``: what it refuses, and the shape of its answers; tests/parity has their truth."""

import dataclasses

import numpy as np
import pytest

import deberta_jax
from deberta_jax.errors import InputError
from tests.made import TINY, saved_model

LINES = ["the cat sat on the mat", "a dog ran in the park", "it is a fine day for a walk"] * 40


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    home = tmp_path_factory.mktemp("fill")
    tokenizer = deberta_jax.train_tokenizer(LINES, 358, str(home / "tokenizer"))
    config = dataclasses.replace(TINY, vocab_size=tokenizer.vocab_size + 5)
    for kind in (deberta_jax.DebertaForMaskedLM, deberta_jax.DebertaForReplacedTokenDetection):
        saved_model(home / kind.__name__, kind(config), tokenizer)
    return home


@pytest.fixture(scope="module")
def fill(directory):
    return deberta_jax.pipeline("fill-mask", str(directory / "DebertaForMaskedLM"))


def test_answers_follow_the_inputs(fill):
    one, two, *none = fill(["the [MASK] sat", "a [MASK] ran in the [MASK]"], top_k=3)
    assert none == []
    assert [len(one), len(two), len(two[0])] == [3, 2, 3]
    scores = [entry["score"] for entry in one]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= entry["token"] < fill.tokenizer.vocab_size for entry in one)
    alone = fill("the [MASK] sat", top_k=3)
    assert [entry["token"] for entry in alone] == [entry["token"] for entry in one]
    assert fill([]) == []
    assert list(one[0]) == ["score", "token", "token_str", "sequence"]
    ids = fill.tokenizer("the [MASK] sat").input_ids[0]
    filled = np.where(ids == fill.tokenizer.mask_id, one[0]["token"], ids)
    assert one[0]["sequence"] == fill.tokenizer.decode(filled)
    assert fill(["the [MASK] sat"], top_k=3) == alone, "as in transformers, a list of one text gives its result"
    assert next(fill(text for text in ["the [MASK] sat"]))[0] == pytest.approx(fill("the [MASK] sat")[0])


def test_targets(fill, caplog):
    every = {entry["token"]: entry["score"] for entry in fill("the [MASK] sat", top_k=fill.tokenizer.vocab_size)}
    names = [fill.tokenizer.id_to_token(300), fill.tokenizer.id_to_token(310), "catdog"]
    found = fill("the [MASK] sat", targets=names)
    first = int(fill.tokenizer("catdog", add_special_tokens=False).input_ids[0][0])
    assert f"its first, {fill.tokenizer.id_to_token(first)!r}, is taken" in caplog.text
    assert {entry["token"] for entry in found} == {*map(fill.tokenizer.token_to_id, names[:2]), first}
    expected = sorted((every[entry["token"]] for entry in found), reverse=True)
    assert [entry["score"] for entry in found] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("given", "options", "says"),
    [
        ("no mask here", {}, "has no [MASK]"),
        ([3], {}, "give a str"),
        ("a [MASK] " + "the cat " * 400, {}, "tokens; the most is"),
        ("[MASK]", {"top_k": 100_000}, "top_k=100000: give 1 to"),
        ("[MASK]", {"targets": []}, "targets=[]"),
        ("[MASK]", {"targets": ["the", 3]}, "give a token, or a list of tokens"),
        ("[MASK]", {"tokenizer_kwargs": {"stride": 3}}, "stride: is no argument of tokenizer_kwargs"),
        (["[MASK]", None], {}, "inputs[1]: cannot read None"),
        ("[MASK]", {"top_k": 0}, "top_k=0: give a whole number, 1 or more"),
    ],
)
def test_bad_input_is_named(fill, given, options, says):
    with pytest.raises(InputError) as raised:
        fill(given, **options)
    assert says in str(raised.value)


def test_a_discriminator_cannot_fill(directory):
    with pytest.raises(InputError):
        deberta_jax.pipeline("fill-mask", str(directory / "DebertaForReplacedTokenDetection"))


def test_nothing_is_compiled_after_warming_up(fill):
    assert fill.warm_up(lengths=[9], texts=[1]) == 1
    programs = fill.masks.forward._cache_size()
    fill("the [MASK] .")
    assert fill.masks.forward._cache_size() == programs
    with pytest.raises(InputError, match="lengths: 0 must be at least 1"):
        fill.warm_up(lengths=[0])
