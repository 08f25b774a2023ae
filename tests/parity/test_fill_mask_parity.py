"""Tokens and scores of ``pipeline("fill-mask")`` beside a softmax over the logits of transformers' model."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
import transformers

import deberta_jax
from tests.made import TINY

pytestmark = pytest.mark.parity
TEXTS = ["the [MASK] sat on the mat", "a [MASK] ran in the [MASK]", "it is [MASK]"]


def test_the_likeliest_tokens_are_those_of_transformers(tmp_path):
    lines = ["the cat sat on the mat", "a dog ran in the park", "it is a fine day for a walk"] * 40
    tokenizer = deberta_jax.train_tokenizer(lines, 358, str(tmp_path / "tokenizer"))
    config = dataclasses.replace(TINY, vocab_size=tokenizer.vocab_size + 5, initializer_range=0.3)
    model = deberta_jax.DebertaForMaskedLM(config)
    params = deberta_jax.init_params(model, jax.random.key(0))
    deberta_jax.save_pretrained(tmp_path / "model", model, params, tokenizer=tokenizer)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "model").eval()
    found = deberta_jax.pipeline("fill-mask", str(tmp_path / "model"))(TEXTS, top_k=4)
    for text, answer in zip(TEXTS, found, strict=True):
        ids = tokenizer([text]).input_ids
        with torch.no_grad():
            shares = torch.softmax(theirs(torch.tensor(ids).long()).logits[0], -1).numpy()
        places = np.flatnonzero(ids[0] == tokenizer.mask_id)
        assert len(places) == text.count("[MASK]")
        for place, entries in zip(places, answer if len(places) > 1 else [answer], strict=True):
            expected = np.argsort(-shares[place][: tokenizer.vocab_size])[:4]
            assert [entry["token"] for entry in entries] == expected.tolist()
            np.testing.assert_allclose([e["score"] for e in entries], shares[place][expected], rtol=1e-4)
