"""Trained rerankers in sentence-transformers: the same scores, and the metrics of its evaluator."""

import dataclasses

import numpy as np
import pytest
import sentence_transformers
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator

import deberta_jax
from deberta_jax.training import Finetune, Optimization, finetune
from tests.made import TINY, WORDS, blank_model, write_table

pytestmark = pytest.mark.parity


def rows(kind, seed):
    rng, body = np.random.default_rng(seed), []
    for i in range(6):
        query = " ".join(rng.choice(WORDS["pos"], 2))
        labels = rng.permutation([1, 1, 0, 0, 0, 0, 0]) * (1 if kind == "binary" else 2.5)
        body += [(query + f" {i}", " ".join(rng.choice(WORDS["neg"], 4)), label) for label in labels.tolist()]
    return body


@pytest.mark.parametrize("kind", ["binary", "numbers"])
def test_a_trained_reranker_in_sentence_transformers(kind, tmp_path):
    blank = blank_model(tmp_path / "blank", dataclasses.replace(TINY, initializer_range=0.3))
    run = tmp_path / "run"
    header, held_out = ("query", "passage", "label"), rows(kind, 1)
    files = {
        "train": str(write_table(tmp_path / "train.jsonl", header, rows(kind, 0))),
        "eval": str(write_table(tmp_path / "eval.jsonl", header, held_out)),
    }
    result = finetune(
        Finetune(
            model=str(blank),
            from_scratch=True,
            task="reranking",
            output=str(run),
            max_length=32,
            epochs=1,
            optimization=Optimization(learning_rate=1e-2),
            **files,
        )
    )
    theirs = sentence_transformers.CrossEncoder(str(run), device="cpu", max_length=32)
    pairs = [row[:2] for row in held_out]
    scores, expected = deberta_jax.CrossEncoder(run).predict(pairs), theirs.predict([list(pair) for pair in pairs])
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert ((expected > 0) & (expected < 1)).all() == (kind == "binary")

    samples = []
    for query in dict.fromkeys(row[0] for row in held_out):
        relevant, others = (
            [row[1] for row in held_out if row[0] == query and (row[2] > 0) == w] for w in (True, False)
        )
        samples.append({"query": query, "positive": relevant, "negative": others})
    found = CrossEncoderRerankingEvaluator(samples, write_csv=False)(theirs)
    assert len(samples) == 6
    # All relevant passages have one label, so that its size has no influence on NDCG.
    assert {name: result.metrics[name] for name in found} == pytest.approx(found, abs=1e-6)
