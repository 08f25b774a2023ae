"""Extracted answers: from start and end logits to text, and the scores of SQuAD's official scripts."""

import collections
import dataclasses
import re
import string
from collections.abc import Mapping, Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation and articles, white space in single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(guess: str, truth: str) -> float:
    return float(normalize_answer(guess) == normalize_answer(truth))


def overlap_f1(guess: str, truth: str) -> float:
    """F1 of the words, as multisets; where either has none, 1 if both have none."""
    ours, theirs = normalize_answer(guess).split(), normalize_answer(truth).split()
    if not ours or not theirs:
        return float(ours == theirs)
    same = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


def answer_scores(guess: str, truths: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1) against the best of several answers; none means that "" is right.

    Answers of which normalisation leaves nothing do not count, as in the script of SQuAD 2.
    """
    kept = [truth for truth in truths if normalize_answer(truth)] or [""]
    return max(exact(guess, truth) for truth in kept), max(overlap_f1(guess, truth) for truth in kept)


def squad_metrics(guesses: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, float]:
    """exact_match and f1 in percent, as the scripts print them; and of the questions with and without an answer."""
    scores = np.array([answer_scores(g, t) for g, t in zip(guesses, truths, strict=True)]) * 100
    answerable = np.array([any(normalize_answer(t) for t in texts) for texts in truths])
    out = {"exact_match": float(scores[:, 0].mean()), "f1": float(scores[:, 1].mean())}
    if not answerable.all():
        for name, rows in (("has_answer", answerable), ("no_answer", ~answerable)):
            if rows.any():
                out[f"{name}_exact_match"] = float(scores[rows, 0].mean())
                out[f"{name}_f1"] = float(scores[rows, 1].mean())
    return out


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer's characters in the context, and its score: the sum of the two logits."""

    start: int
    end: int
    score: float


@dataclasses.dataclass(frozen=True)
class Answers:
    """The best answers to one question, best first, and the score of "no answer"."""

    best: tuple[Answer, ...]
    nothing: float


def window_answers(logits: np.ndarray, offsets: np.ndarray, *, n_best: int, longest: int) -> list[Answer]:
    """The best spans of one window: logits [T, 2], offsets [T, 2] of the context's tokens, empty elsewhere."""
    tokens = np.flatnonzero(offsets[:, 0] < offsets[:, 1])
    if not len(tokens):
        return []
    starts = tokens[np.argsort(-logits[tokens, 0], kind="stable")[:n_best]]
    ends = tokens[np.argsort(-logits[tokens, 1], kind="stable")[:n_best]]
    s, e = np.meshgrid(starts, ends, indexing="ij")
    fits = (e >= s) & (e - s < longest)
    s, e = s[fits], e[fits]
    score = logits[s, 0] + logits[e, 1]
    order = np.argsort(-score, kind="stable")[:n_best]
    return [Answer(int(offsets[s[i], 0]), int(offsets[e[i], 1]), float(score[i])) for i in order]


def collect_answers(
    logits: np.ndarray, starts: np.ndarray, rows: np.ndarray, offsets: np.ndarray, *, n_best: int, longest: int
) -> Mapping[int, Answers]:
    """Answers by question from the logits [N, 2] of all windows; a question's windows compete by score.

    The score of "no answer" is the lowest of its windows' [CLS] scores: every window must say so.
    """
    found: dict[int, list[Answer]] = {}
    nothing: dict[int, float] = {}
    for text, row in enumerate(rows.tolist()):
        part = slice(starts[text], starts[text + 1])
        window = logits[part]
        found.setdefault(row, []).extend(window_answers(window, offsets[part], n_best=n_best, longest=longest))
        nothing[row] = min(nothing.get(row, np.inf), float(window[0].sum()))
    return {
        row: Answers(_distinct(sorted(answers, key=lambda a: -a.score))[:n_best], nothing[row])
        for row, answers in found.items()
    }


def _distinct(answers: Sequence[Answer]) -> tuple[Answer, ...]:
    """Windows overlap: the same characters, found twice, count once."""
    seen: dict[tuple[int, int], Answer] = {}
    for answer in answers:
        seen.setdefault((answer.start, answer.end), answer)
    return tuple(seen.values())
