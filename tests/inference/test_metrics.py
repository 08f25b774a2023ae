"""Metrics against their definitions, written out here."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from deberta_jax.data.features import Features
from deberta_jax.data.labels import LabelSpec
from deberta_jax.data.tables import Table
from deberta_jax.tasks.metrics import (
    classification_metrics,
    multi_label_metrics,
    ranking_metrics,
    regression_metrics,
)
from deberta_jax.tasks.multiple_choice import ChoiceTask
from deberta_jax.tasks.text_classification import TextTask


def logits_for(predicted, classes):
    return np.eye(classes)[np.asarray(predicted)] * 3.0 - 1.0


def counted(labels, predicted, classes):
    """The confusion matrix by counting."""
    table = np.zeros((classes, classes))
    for label, guess in zip(labels, predicted, strict=True):
        table[label, guess] += 1
    return table


def f1_of(table, c):
    hits, guesses, members = table[c, c], table[:, c].sum(), table[c].sum()
    return 0.0 if guesses + members == 0 else 2 * hits / (guesses + members)


def matthews_of(table):
    """Gorodkin's correlation of several classes: covariances of the one-hot codes."""
    labels, guesses, n = table.sum(1), table.sum(0), table.sum()
    both = n * np.trace(table) - labels @ guesses
    spread = math.sqrt((n**2 - guesses @ guesses) * (n**2 - labels @ labels))
    return both / spread if spread else 0.0


@settings(deadline=None)
@given(
    st.integers(2, 5).flatmap(
        lambda c: st.tuples(st.just(c), st.lists(st.tuples(st.integers(0, c - 1), st.integers(0, c - 1)), min_size=1))
    )
)
def test_classification(case):
    classes, pairs = case
    labels, predicted = map(np.array, zip(*pairs, strict=True))
    table = counted(labels, predicted, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = classification_metrics(logits_for(predicted, classes), labels)
    f1 = f1_of(table, 1) if classes == 2 else np.mean([f1_of(table, c) for c in range(classes)])
    assert found.keys() == {"accuracy", "f1", "matthews_correlation"}
    assert found["accuracy"] == pytest.approx(np.trace(table) / table.sum())
    assert found["f1"] == pytest.approx(f1)
    assert found["matthews_correlation"] == pytest.approx(matthews_of(table), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_several_labels(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(30, 4)), rng.integers(0, 2, (30, 4))
    labels[:, 3] = 0
    logits[:, 3] = -1.0  # a label that is never there and never given counts as 0
    tables = [counted(labels[:, c], np.int64(logits[:, c] > 0), 2) for c in range(4)]
    assert multi_label_metrics(logits, np.float32(labels)) == pytest.approx(
        {
            "f1": np.mean([f1_of(table, 1) for table in tables]),
            "micro_f1": f1_of(sum(tables), 1),
            "accuracy": np.mean([all((row > 0) == truth) for row, truth in zip(logits, labels, strict=True)]),
        }
    )


def ranks(values):
    """1-based, ties share their mean rank."""
    return np.array([np.sum(values < v) + (np.sum(values == v) + 1) / 2 for v in values])


def correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("seed", range(5))
def test_regression(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, 50).astype(float)  # with ties
    guesses = labels + rng.normal(0, seed + 0.1, 50)
    found = regression_metrics(guesses, labels)
    assert found["pearson"] == pytest.approx(correlation(guesses, labels))
    assert found["spearman"] == pytest.approx(correlation(ranks(guesses), ranks(labels)))


def test_a_correlation_that_does_not_exist_is_null_and_nobody_is_warned():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing = {"pearson": None, "spearman": None}
        assert regression_metrics(np.ones(4), np.arange(4.0)) == nothing
        assert regression_metrics(np.arange(4.0), np.ones(4)) == nothing
        assert regression_metrics(np.ones(1), np.ones(1)) == nothing
        assert regression_metrics(np.float32([1, 1, 1 + 1e-7]), np.arange(3.0)).keys() == nothing.keys()


def features_of(labels, choices=1):
    """Texts of one token each, beside these labels."""
    count = len(labels) * choices
    return Features(
        ids=np.zeros(count, np.int32),
        types=np.zeros(count, np.int8),
        starts=np.arange(count + 1),
        labels=np.array(labels, np.int32),
        choices=choices,
    )


def test_multircs_questions_are_right_where_all_their_answers_are():
    task = TextTask(("p", "a"), ("label",), LabelSpec("single_label_classification", ("0", "1")), group="group")
    # Three questions: all right; one answer wrong; a lone answer, wrong.
    groups, labels, guesses = ["x", "x", "y", "x", "y", "z"], [1, 0, 1, 1, 0, 1], [1, 0, 1, 1, 1, 0]
    table = Table("f", {"group": groups}, range(6))
    found = task.metrics(np.float32(logits_for(guesses, 2)), features_of(labels), table)
    assert found["exact_match"] == pytest.approx(1 / 3)
    # 3 of 4 that are right are found, and 3 of the 4 that are said to be are.
    assert found["f1"] == pytest.approx(0.75)
    assert found["accuracy"] == pytest.approx(4 / 6)


def test_records_answers_are_compared_with_all_that_are_right():
    task = ChoiceTask(("passage",), ("queries",), "label", gold="gold")
    names = [["Ann Lee", "Bo"], ["Ann", "Bo"], ["the Bo.", "Cy"], ["Ann Lee Poe", "Bo"]]
    gold = [["Bo", "Cy"], ["Bo"], ["Bo"], ["Ann Lee"]]
    labels, guesses = [1, 1, 0, 0], [1, 0, 0, 0]
    table = Table("f", {"entities": names, "gold": gold}, range(4))
    found = task.metrics(np.float32(logits_for(guesses, 2)).ravel(), features_of(labels, choices=2), table)
    # Right; wrong; right but for article and point; two of its three words are the answer's two.
    assert found["exact_match"] == pytest.approx(2 / 4)
    assert found["f1"] == pytest.approx((1 + 0 + 1 + 2 * (2 / 3) * 1 / (2 / 3 + 1)) / 4)
    assert found["accuracy"] == pytest.approx(3 / 4)


@pytest.mark.filterwarnings("ignore:No positive class found")
@pytest.mark.parametrize("grades", [2, 4])
def test_rankings_against_scikit_learn(grades):
    rng = np.random.default_rng(grades)
    sizes = rng.integers(2, 40, 50)
    queries = np.repeat(np.arange(50), sizes)
    relevance = rng.integers(0, grades, len(queries)) * (rng.random(len(queries)) < 0.2)
    scores = rng.permutation(len(queries)) / 7 - 20
    mixed = rng.permutation(len(queries))  # the rows of a query need not stand together
    found = ranking_metrics(
        scores[mixed].astype(np.float32), relevance[mixed].astype(np.float32), [f"q{i}" for i in queries[mixed]]
    )
    ndcg, reciprocal, average = [], [], []
    for q in range(50):
        labels, own = relevance[queries == q], scores[queries == q]
        ndcg.append(ndcg_score([labels], [own], k=10))
        average.append(average_precision_score(labels > 0, own))
        best = [rank for rank, i in enumerate(np.argsort(-own)[:10], 1) if labels[i]]
        reciprocal.append(1 / best[0] if best else 0)
    assert 0 in reciprocal, "a query without a relevant passage among the first ten"
    assert found["ndcg@10"] == pytest.approx(np.mean(ndcg))
    assert found["mrr@10"] == pytest.approx(np.mean(reciprocal))
    assert found["map"] == pytest.approx(np.mean(average))


def test_equal_scores_rank_the_least_relevant_first():
    found = ranking_metrics(np.zeros(4, np.float32), np.array([1, 0, 0, 0], np.float32), ["a"] * 4)
    assert found == {"ndcg@10": pytest.approx(1 / np.log2(5)), "mrr@10": 0.25, "map": 0.25}
    # One relevant passage at rank 11 of 11, another query with one passage, a third with negative labels.
    queries = ["a"] * 11 + ["b"]
    labels = np.array([1] + [0] * 10 + [1], np.float32)
    found = ranking_metrics(-labels + np.arange(12) / 100, labels, queries)
    assert found == {"ndcg@10": 0.5, "mrr@10": 0.5, "map": pytest.approx((1 / 11 + 1) / 2)}
    assert ranking_metrics(labels, labels - 1, queries)["ndcg@10"] is None
