"""SQuAD's rules, on the cases that its documentation and scripts name, and the choice among windows."""

import numpy as np
import pytest

from deberta_jax.tasks.squad import (
    answer_scores,
    collect_answers,
    normalize_answer,
    overlap_f1,
    squad_metrics,
    window_answers,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat's a hat.", "cats hat"),
        ("an apple, the pear", "apple pear"),
        ("theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("a", ""),
        ("10,000", "10000"),
        ("the\tA\nan", ""),
    ],
)
def test_articles_punctuation_case_and_blanks_do_not_count(text, normal):
    assert normalize_answer(text) == normal


def test_words_are_counted_as_often_as_they_are_there():
    assert overlap_f1("the cat sat", "cat sat on mat") == pytest.approx(2 * 1.0 * 0.5 / 1.5)
    assert overlap_f1("b b c", "b c c") == pytest.approx(2 / 3)
    assert overlap_f1("x", "y") == 0
    assert overlap_f1("", "") == 1
    assert overlap_f1("the", "") == 1, "nothing is left of either"
    assert overlap_f1("", "y") == 0


def test_the_best_of_several_answers_and_none():
    assert answer_scores("the Eiffel tower", ["Eiffel Tower", "tower"]) == (1.0, 1.0)
    assert answer_scores("tower in Paris", ["Eiffel Tower", "Paris, France"]) == (0.0, pytest.approx(0.4))
    assert answer_scores("", []) == (1.0, 1.0)
    assert answer_scores("something", []) == (0.0, 0.0)
    assert answer_scores("", ["the"]) == (1.0, 1.0), "an answer of which nothing is left is no answer"


def test_percentages_and_the_two_kinds_of_questions():
    found = squad_metrics(["a cat", "", "dog", ""], [["Cat"], [], [], ["mouse"]])
    assert found == {
        "exact_match": 50.0,
        "f1": 50.0,
        "has_answer_exact_match": 50.0,
        "has_answer_f1": 50.0,
        "no_answer_exact_match": 50.0,
        "no_answer_f1": 50.0,
    }
    assert squad_metrics(["cat", "dog"], [["cat"], ["dogs"]]) == {"exact_match": 50.0, "f1": 50.0}


def by_trial(logits, offsets, longest):
    """Every pair of tokens of the context."""
    there = [i for i in range(len(offsets)) if offsets[i, 0] < offsets[i, 1]]
    pairs = [(i, j) for i in there for j in there if i <= j < i + longest]
    return max(pairs, key=lambda p: logits[p[0], 0] + logits[p[1], 1])


def test_the_best_span_is_the_best_of_all_and_the_windows_compete():
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[[0, 0]] * 3, [[2 * i, 2 * i + 2] for i in range(7)], [[0, 0]]]).astype(np.int32)
    for _ in range(30):
        logits = rng.normal(size=(11, 2)).astype(np.float32) * 3
        start, end = by_trial(logits, offsets, 3)
        best = window_answers(logits, offsets, n_best=11, longest=3)
        assert (best[0].start, best[0].end) == (offsets[start, 0], offsets[end, 1])
        assert best[0].score == pytest.approx(logits[start, 0] + logits[end, 1])
        assert [a.score for a in best] == sorted((a.score for a in best), reverse=True)
    logits = rng.normal(size=(33, 2)).astype(np.float32)
    logits[[0, 11, 22]] = [[3, 3], [1, 1], [2, 2]]
    answers = collect_answers(
        logits, np.array([0, 11, 22, 33]), np.array([5, 5, 6]), np.tile(offsets, (3, 1)), n_best=4, longest=3
    )
    assert set(answers) == {5, 6}
    assert answers[5].nothing == 2, "every window must say that there is no answer"
    assert answers[6].nothing == 4
    both = [window_answers(logits[i : i + 11], offsets, n_best=4, longest=3) for i in (0, 11)]
    assert answers[5].best[0].score == max(window[0].score for window in both)
    assert len({(a.start, a.end) for a in answers[5].best}) == len(answers[5].best) == 4
