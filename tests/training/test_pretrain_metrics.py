"""The figures of pre-training on inputs whose figures are known."""

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from deberta_jax.data.corpus import Corpus
from deberta_jax.data.masked_batches import HeldOutBatches, Masker
from deberta_jax.data.rows import lay_out
from deberta_jax.sharding import WHOLE, RowShare
from deberta_jax.text.mlm_masking import Masking, Vocabulary
from deberta_jax.training.language_metrics import detection_metrics, guesses_without_reading

SPECIAL = np.arange(10) < 4
VOCABULARY = Vocabulary(SPECIAL, ~SPECIAL, np.flatnonzero(~SPECIAL), 3)


def one_word(length, **masking):
    """Batches of text of one word in rows of so many tokens."""
    ids = np.full(40 * 300, 7, np.uint16)
    corpus = Corpus((ids,), np.array([len(ids)]), np.bincount(ids, minlength=10), 1, 2, 0)
    masker = Masker(VOCABULARY, Masking(**masking))
    return {"rows": lay_out(corpus, length, "contiguous"), "masker": masker, "batch_size": 100, "seed": 0}


class Given(HeldOutBatches):
    """Two batches of one row of eight places, of which a process reads none itself."""

    def __len__(self):
        return 2

    def __getitem__(self, step):
        assert self.share == WHOLE, "figures are of all processes' rows"
        labels, positions = ([[5, 5, 6]], [[1, 2, 4]]) if step == 0 else ([[5, -100, -100]], [[2, -1, -1]])
        return {"labels": np.array(labels), "positions": np.array(positions)}


def test_guesses_that_ignore_the_text():
    counts = np.zeros(10, np.int64)
    counts[[5, 6, 7]] = 3, 1, 6  # of 10 tokens; with one more of each of ten words 4, 2 and 7 of 20
    found = guesses_without_reading(Given(**one_word(8), share=RowShare((1,), 2)), counts)
    assert found["uniform_loss"] == pytest.approx(math.log(10))
    assert found["unigram_loss"] == pytest.approx(-(3 * math.log(4 / 20) + math.log(2 / 20)) / 4)
    assert found["unigram_entropy"] == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert found["masked_positions"] == pytest.approx(3 / 6), "of the places between the row's first and last"


@pytest.mark.parametrize("skip_tail", [False, True])
def test_the_share_of_positions_that_are_ever_masked(skip_tail):
    """In 300 rows every position comes up; from the left, as the original masks, the last ones are not reached."""
    held_out = HeldOutBatches(**one_word(42, skip_tail=skip_tail))
    share = guesses_without_reading(held_out, np.ones(10, np.int64))["masked_positions"]
    assert 0.5 < share < 1 if skip_tail else share == 1


def test_scores_of_a_detector():
    # Pairs of a replaced token and another: 2 x 3, of which 4 are in order and 1 is a tie.
    scores, truth = np.array([0.9, 0.5, 0.8, 0.5, 0.1]), np.array([1, 1, 0, 0, 0])
    found = detection_metrics(scores, truth)
    assert found["roc_auc"] == pytest.approx(4.5 / 6)
    # Precision at each replaced token's score, the tie taken together: 1/1 and 2/4.
    assert found["average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    assert found["replaced_rate"] == pytest.approx(0.4)
    assert found["prior_entropy"] == pytest.approx(-0.4 * math.log(0.4) - 0.6 * math.log(0.6))


def test_many_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth = (rng.random(2000) < 0.1).astype(np.int64)
    scores = np.round(rng.normal(size=2000) + truth, 1)  # many ties
    found = detection_metrics(scores, truth)
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(truth, scores), rel=1e-12)
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(truth, scores), rel=1e-12)
    assert 0.6 < found["roc_auc"] < 0.9
    assert found["replaced_rate"] == truth.mean() < found["average_precision"]


@pytest.mark.parametrize("value", [0, 1])
def test_a_detector_with_labels_of_one_class(value):
    found = detection_metrics(np.array([0.1, 0.2]), np.array([value, value]))
    assert found == {"replaced_rate": value, "prior_entropy": 0.0, "roc_auc": 0.5, "average_precision": value}
