"""Scores and ranks of pairs, against sentence-transformers' CrossEncoder on the same directories."""

import json

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers

import deberta_jax
from deberta_jax import CrossEncoder
from deberta_jax.errors import InputError
from deberta_jax.text import load_tokenizer

pytestmark = pytest.mark.parity

PAIRS = [
    ("who wrote it?", "A novel by Harper Lee, published in 1960."),
    ("who wrote it?", ""),
    ("A first text that is much longer than the second one, " * 9, "a second"),
    ("déjà vu", "naïve — café 🙂"),
    ("x", "A second text that is far longer than the first. " * 12),
]
NAME = "torch.nn.modules.activation."


def saved(directory, data_dir, labels, change=None, resaved=None):
    """A directory of transformers' with keys of sentence-transformers in its config, or written by the latter."""
    tokenizer = load_tokenizer(data_dir / "tokenizers" / "deberta-v3")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    raw = deberta_jax.PRESETS["deberta-v3-base"].replace(vocab_size=tokenizer.vocab_size, **sizes).to_hf()
    raw |= {"id2label": {i: f"LABEL_{i}" for i in range(labels)}, "initializer_range": 0.3}
    del raw["label2id"]
    torch.manual_seed(labels)
    transformers.DebertaV2ForSequenceClassification(transformers.DebertaV2Config(**raw)).save_pretrained(directory)
    tokenizer.save(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **(change or {})}))
    if resaved is not None:
        model = sentence_transformers.CrossEncoder(str(directory), device="cpu", activation_fn=resaved)
        model.save_pretrained(str(directory / "again"))
        return directory / "again"
    return directory


CONFIGS = {
    "one label": (1, None, None),
    "three labels": (3, None, None),
    "version 4": (1, {"sentence_transformers": {"activation_fn": f"{NAME}Tanh", "version": "4.1.0"}}, None),
    "before version 4": (1, {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, None),
    "both": (
        3,
        {
            "sbert_ce_default_activation_function": f"{NAME}Tanh",
            "sentence_transformers": {"activation_fn": f"{NAME}Sigmoid"},
        },
        None,
    ),
    "version 6": (1, None, torch.nn.LogSigmoid()),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_and_ranks(name, tmp_path, data_dir):
    labels, change, resaved = CONFIGS[name]
    directory = saved(tmp_path, data_dir, labels, change, resaved)
    theirs = sentence_transformers.CrossEncoder(str(directory), device="cpu", max_length=64)
    ours = CrossEncoder(directory, max_length=64)
    assert ours.num_labels == theirs.num_labels == labels
    expected, found = theirs.predict([list(pair) for pair in PAIRS]), ours.predict(PAIRS)
    assert expected.shape == found.shape
    assert found.dtype == np.float32
    assert np.ptp(expected) > 1e-2
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(ours.predict(PAIRS[3]), theirs.predict(list(PAIRS[3])), atol=1e-5)
    raw = theirs.predict([list(pair) for pair in PAIRS], activation_fn=torch.nn.Identity(), apply_softmax=True)
    ours_raw = ours.predict(PAIRS, activation_fn=lambda logits: logits, apply_softmax=True)
    np.testing.assert_allclose(ours_raw, raw, atol=1e-5)
    if labels == 1:
        documents = [second for _, second in PAIRS]
        for options in ({}, {"top_k": 3, "return_documents": True}):
            ranked, expected = (model.rank("who wrote it?", documents, **options) for model in (ours, theirs))
            assert [row["corpus_id"] for row in ranked] == [row["corpus_id"] for row in expected]
            assert [row.get("text") for row in ranked] == [row.get("text") for row in expected]
            assert [row["score"] for row in ranked] == pytest.approx([row["score"] for row in expected], abs=1e-5)


def test_what_cannot_be_scored_is_named(tmp_path, data_dir):
    ours = CrossEncoder(saved(tmp_path / "three", data_dir, 3), max_length=32)
    assert ours.predict([]).shape == (0,)
    for pairs, message in (
        ([("a", "b"), ("a",)], r"pair 1 is \('a',\); give two texts"),
        ([("a", None)], "pair 0 has None"),
        ("ab", "cannot score 'ab'"),
        (None, "cannot score None"),
        ({"text": "a", "text_pair": "b"}, "cannot score"),
        (["text"], "pair 0 is"),
        ([("a", "b"), "ab"], "pair 1 is 'ab'"),
        (["a", "b", "c"], "pair 0 is"),
    ):
        with pytest.raises(InputError, match=message):
            ours.predict(pairs)
    with pytest.raises(InputError, match="one label, and this one has 3"):
        ours.rank("a", ["b"])
    one = CrossEncoder(saved(tmp_path / "one", data_dir, 1), max_length=32)
    for arguments, message in (
        (("a", "b"), "documents is one text"),
        ((None, ["b"]), "the query is None"),
        (("a", ["b", 3]), "document 1 is 3"),
        (("a", {"b": "c"}), "rank: documents is {'b': 'c'}; give a list"),
        (("a", {"b"}), "rank: documents is a set, which has no order; give a list"),
        (("a", 3), "rank: documents is 3; give a list"),
        (("a", ["b"], 0), "top_k=0: give a whole number, 1 or more"),
        (("a", ["b"], -1), "top_k=-1: give a whole number, 1 or more"),
    ):
        with pytest.raises(InputError, match=message):
            one.rank(*arguments)
    for function, message in (
        (lambda logits: logits[:1], r"gave an array \[1, 1\] for logits \[2, 1\]; give a row for each pair"),
        (lambda logits: 1.0, r"gave an array \[\]"),
        (lambda logits: "high", "gave 'high'"),
        (lambda logits: [[1], [2, 3]], "gave"),
    ):
        with pytest.raises(InputError, match=message):
            one.rank("a", ["b", "c"], activation_fn=function)
    config = {"sentence_transformers": {"activation_fn": "my_package.Scale"}}
    with pytest.raises(InputError, match=r"my_package.Scale, which is not known here .* pass activation_fn"):
        CrossEncoder(saved(tmp_path / "own", data_dir, 1, config))
    doubled = CrossEncoder(tmp_path / "own", max_length=32, activation_fn=lambda logits: 2 * logits)
    np.testing.assert_allclose(doubled.predict(PAIRS), 2 * doubled.predict(PAIRS, activation_fn=lambda logits: logits))
