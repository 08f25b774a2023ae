"""Spans and their F1 against seqeval itself."""

import numpy as np
import pytest

from deberta_jax.tasks.chunks import chunk_metrics, chunks, is_chunk_tag

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-PER", "S-LOC"]


@pytest.fixture(scope="module")
def seqeval():
    metrics = pytest.importorskip("seqeval.metrics")
    labelling = pytest.importorskip("seqeval.metrics.sequence_labeling")
    return metrics, labelling


@pytest.mark.filterwarnings("ignore")
def test_spans_and_scores_are_seqevals_on_random_sequences(seqeval):
    """Most of them break every scheme there is."""
    metrics, labelling = seqeval
    rng = np.random.default_rng(0)
    draw = lambda: [[str(rng.choice(TAGS[: 5 + 2 * (i % 2)])) for _ in range(rng.integers(1, 12))] for i in range(200)]
    truth = draw()
    guess = [[tag if rng.random() < 0.7 else str(rng.choice(TAGS[:5])) for tag in tags] for tags in truth]
    for tags in (*truth, *guess):
        assert chunks(tags) == [(kind, first, last) for kind, first, last in labelling.get_entities(tags)], tags
    found = chunk_metrics(truth, guess)
    assert found["f1"] == pytest.approx(metrics.f1_score(truth, guess))
    assert found["precision"] == pytest.approx(metrics.precision_score(truth, guess))
    assert found["recall"] == pytest.approx(metrics.recall_score(truth, guess))
    assert 0.2 < found["f1"] < 0.9


def test_by_hand():
    assert chunks(["B-PER", "I-PER", "O", "B-LOC", "B-LOC"]) == [("PER", 0, 1), ("LOC", 3, 3), ("LOC", 4, 4)]
    assert chunks(["I-PER", "I-LOC", "O"]) == [("PER", 0, 0), ("LOC", 1, 1)]
    assert chunk_metrics([["O"]], [["O"]]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert [is_chunk_tag(tag) for tag in ("O", "B-PER", "NOUN", "I-", "X-Y")] == [True, True, False, False, False]
