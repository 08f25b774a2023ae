"""Computes metrics of a whole evaluation set with scikit-learn and scipy, on the host."""

import math
import warnings
from collections.abc import Sequence

import numpy as np

# scikit-learn and scipy.stats are imported inside functions: together they take longer to import than JAX.


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns accuracy, f1 and matthews_correlation of logits [n,C] with respect to label ids [n].

    With two classes ``f1`` is that of class 1, as GLUE reports it; with more it is the mean over classes (macro).
    """
    from sklearn import metrics as sk

    predicted = logits.argmax(axis=-1)
    binary = logits.shape[-1] == 2
    classes = np.arange(logits.shape[-1])
    f1 = sk.f1_score(
        labels,
        predicted,
        average="binary" if binary else "macro",
        labels=None if binary else classes,
        zero_division=0,  # pyright: ignore[reportArgumentType]
    )
    with warnings.catch_warnings():
        # It warns if all labels and predictions are of one class, and returns 0, which is right.
        warnings.simplefilter("ignore", UserWarning)
        matthews = sk.matthews_corrcoef(labels, predicted)
    return {
        "accuracy": float(sk.accuracy_score(labels, predicted)),
        "f1": float(f1),
        "matthews_correlation": float(matthews),
    }


def regression_metrics(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Returns the pearson and spearman correlations of predictions [n] and labels [n]; None if one is constant."""
    from scipy import stats

    correlations: dict[str, float | None] = {"pearson": None, "spearman": None}
    for name, correlate in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            value = math.nan if len(labels) < 2 else float(np.asarray(correlate(predictions, labels))[0])
        correlations[name] = None if math.isnan(value) else value  # JSON has no NaN
    return correlations


def multi_label_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns f1 (mean over labels), micro_f1 and accuracy of logits [n,C] with respect to labels of 0 and 1 [n,C].

    A label is predicted if its probability exceeds 0.5. Accuracy counts the rows in which all labels are right.
    """
    from sklearn import metrics as sk

    guess, truth = logits > 0, labels > 0.5
    f1 = lambda average: float(sk.f1_score(truth, guess, average=average, zero_division=0))  # pyright: ignore
    return {"f1": f1("macro"), "micro_f1": f1("micro"), "accuracy": float(sk.accuracy_score(truth, guess))}


def ranking_metrics(
    scores: np.ndarray, relevance: np.ndarray, queries: Sequence[str], at: int = 10
) -> dict[str, float | None]:
    """Returns ``ndcg@10``, ``mrr@10`` and ``map``, each the mean over all queries.

    A passage is relevant if its label exceeds 0. A query without a relevant passage counts 0. Among passages with equal
    scores the least relevant is ranked first, so that constant scores earn nothing.

    Args:
      scores: [n], of each passage with its query.
      relevance: [n], the labels, which are the gains of ``ndcg@10``; it is None if one is negative.
      queries: the n queries; rows with equal queries are ranked together.
      at: number of passages that ``ndcg@10`` and ``mrr@10`` count.
    """
    numbers: dict[str, int] = {}
    query = np.array([numbers.setdefault(text, len(numbers)) for text in queries])
    scores, relevance = scores.astype(np.float64), relevance.astype(np.float64)
    order, ideal = np.lexsort((relevance, -scores, query)), np.lexsort((-relevance, query))
    owner, size = query[order], np.bincount(query)
    first = np.cumsum(size) - size
    rank = np.arange(len(query)) - first[owner]
    discount = np.where(rank < at, 1 / np.log2(rank + 2), 0)
    gain, best = (np.bincount(owner, relevance[rows] * discount) for rows in (order, ideal))
    relevant = relevance[order] > 0
    reciprocal = np.zeros(len(size))
    np.maximum.at(reciprocal, owner, np.where(relevant & (rank < at), 1 / (rank + 1), 0))
    found = np.cumsum(relevant)
    precision = (found - (found - relevant)[first][owner]) / (rank + 1)
    average = np.bincount(owner, precision * relevant) / np.maximum(np.bincount(owner, relevant), 1)
    ndcg = float(np.divide(gain, best, out=np.zeros(len(size)), where=best > 0).mean())
    return {
        f"ndcg@{at}": None if relevance.min() < 0 else ndcg,
        f"mrr@{at}": float(reciprocal.mean()),
        "map": float(average.mean()),
    }
