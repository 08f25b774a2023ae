"""Embeddings by their definition, of packed rows, and what cannot be embedded. tests/parity compares with others."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import deberta_jax
from deberta_jax.errors import InputError
from deberta_jax.ops.pooling import normalize, pool
from tests.made import TINY, make_tokenizer, rows, saved_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    home = tmp_path_factory.mktemp("embedding")
    model = deberta_jax.DebertaEncoder(dataclasses.replace(TINY, num_hidden_layers=1, initializer_range=0.3))
    return saved_model(home / "model", model, make_tokenizer(home / "tokenizer"))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_pooling_by_its_definition(pooling):
    states = np.random.default_rng(0).standard_normal((2, 6, 3)).astype(np.float32)
    segment_ids = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    found = pool(jnp.asarray(states), jnp.asarray(segment_ids), 3, pooling)
    reduce = {"mean": lambda x: x.mean(0), "cls": lambda x: x[0], "max": lambda x: x.max(0)}[pooling]
    for row, number, part in ((0, 1, slice(0, 2)), (0, 2, slice(2, 5)), (1, 1, slice(0, 6))):
        np.testing.assert_allclose(found[row, number - 1], reduce(states[row, part]), rtol=1e-6)
    assert not found[0, 2].any()
    assert not found[1, 1:].any()
    lengths = np.linalg.norm(normalize(found), axis=-1)
    np.testing.assert_allclose(lengths, [[1, 1, 0], [1, 0, 0]], rtol=1e-6)


def test_texts_of_a_row_do_not_change_each_other(directory):
    texts = [text for text, _ in rows(9, classes=3, seed=1)] + ["", "ban " * 40]
    embedder = deberta_jax.Embedder(directory, max_length=32)
    found = embedder.encode(texts, batch_size=2)
    assert found.shape == (11, TINY.hidden_size)
    model, params = deberta_jax.from_pretrained(directory)
    tokenizer = deberta_jax.load_tokenizer(str(directory))
    batch = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="np")
    states = np.asarray(model(params, **batch).last_hidden_state)
    mask = np.asarray(batch["attention_mask"])[..., None]
    np.testing.assert_allclose(found, (states * mask).sum(1) / mask.sum(1), atol=1e-5)
    np.testing.assert_allclose(deberta_jax.encode(embedder, iter(texts[:1])), found[:1], atol=1e-5)
    np.testing.assert_allclose(embedder.encode(texts[0]), found[0], atol=1e-5)
    assert embedder.encode([]).shape == (0, TINY.hidden_size)
    for bad, message in (
        (["a", None], "text 1 is None; give a str"),
        ([("a", "b")], r"text 0 is \('a', 'b'\)"),
        (None, "cannot embed None"),
        ({"text": "a"}, "cannot embed"),
    ):
        with pytest.raises(InputError, match=message):
            embedder.encode(bad)
    with pytest.raises(InputError, match="batch size 0"):
        embedder.encode("a", batch_size=0)
    with pytest.raises(InputError, match="pooling: belongs to the Embedder"):
        deberta_jax.encode(embedder, "a", pooling="cls")
    with pytest.raises(InputError, match="pooling='first': must be one of 'mean', 'cls', 'max'"):
        deberta_jax.Embedder(directory, pooling="first")
