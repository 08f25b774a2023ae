"""Loss and probabilities of logits, and a predictor that splits its batches over the devices."""

import jax
import numpy as np
import pytest

import deberta_jax
from deberta_jax.data.features import make_features
from deberta_jax.inference.predict import Predictor
from deberta_jax.sharding import make_mesh
from deberta_jax.tasks.text_classification import probabilities, score
from tests.made import rows


def test_the_loss_is_the_mean_cross_entropy_or_squared_error():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(9, 3)).astype(np.float32), rng.integers(0, 3, 9).astype(np.int32)
    found = score(logits, labels, "single_label_classification")
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    assert found["loss"] == pytest.approx(-np.log(shares[np.arange(9), labels]).mean(), rel=1e-5)
    np.testing.assert_allclose(probabilities(logits), shares, rtol=1e-6)
    numbers = rng.normal(size=9).astype(np.float32)
    found = score(logits[:, :1], numbers, "regression")
    assert found.keys() == {"pearson", "spearman", "loss"}
    assert found["loss"] == pytest.approx(float(((logits[:, 0] - numbers) ** 2).mean()), rel=1e-5)


def test_probabilities_of_large_logits_sum_to_one():
    shares = probabilities(np.array([[1e4, -1e4, 1e4], [0, 0, 0]], np.float32))
    np.testing.assert_allclose(shares, [[0.5, 0, 0.5], [1 / 3] * 3])


@pytest.mark.slow
def test_any_mesh_gives_the_logits_of_one_device(trained):
    model, params = deberta_jax.from_pretrained(trained.directory, head="sequence-classification")
    tokenizer = deberta_jax.load_tokenizer(str(trained.directory))
    texts = [text for text, _ in rows(13, seed=8)]
    features = make_features(tokenizer, texts, None, max_length=16)
    found = []
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(data=2, fsdp=2, tensor=2)):
        told = []
        predictor = Predictor(model, tokenizer.pad_id, max_length=16, batch_size=5, mesh=mesh)
        assert predictor.rows % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0
        found.append(predictor.logits(params, features, told.append))
        assert sum(told) == 13
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


@pytest.mark.slow
def test_few_texts_cost_few_rows_and_nothing_is_compiled_after_warming_up(trained, monkeypatch):
    model, params = deberta_jax.from_pretrained(trained.directory, head="sequence-classification")
    tokenizer = deberta_jax.load_tokenizer(str(trained.directory))
    predictor = Predictor(model, tokenizer.pad_id, max_length=24, mesh=make_mesh(devices=jax.devices()[:1]))
    assert predictor.shapes(texts=[1]) == [(1, 16), (1, 24)]
    assert predictor.shapes(texts=[5]) == [(size, length) for size in (1, 4, 16) for length in (16, 24)]
    assert predictor.shapes(texts=[33]) == [(size, length) for size in (1, 4, 16, 32) for length in (16, 24)]
    assert predictor.shapes(texts=[10_000]) == [(32, 16), (32, 24)], "few programs for a large file"
    assert predictor.warm_up(params, texts=[1, 6]) == 6
    programs = predictor.forward._cache_size()
    shapes, forward = [], predictor.forward
    monkeypatch.setattr(predictor, "forward", lambda p, b: (shapes.append(b["input_ids"].shape), forward(p, b))[1])
    texts = [text for text, _ in rows(6, seed=8)]
    features = make_features(tokenizer, texts, None, max_length=24)
    together = predictor.logits(params, features)
    alone = [predictor.logits(params, make_features(tokenizer, [text], None, max_length=24)) for text in texts]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)
    assert sum(rows for rows, _ in shapes[:-6]) < 16
    assert [rows for rows, _ in shapes[-6:]] == [1, 1, 1, 1, 1, 1]
    assert all(length in (16, 24) for _, length in shapes)
    assert forward._cache_size() == programs
