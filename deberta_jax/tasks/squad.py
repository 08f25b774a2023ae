"""Extracts answers from start and end logits, and computes the scores of SQuAD's official scripts."""

import collections
import dataclasses
import re
import string
from collections.abc import Mapping, Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Returns a text in lower case, without punctuation and articles, and with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(guess: str, truth: str) -> float:
    """Returns 1 if two normalized texts are equal, else 0."""
    return float(normalize_answer(guess) == normalize_answer(truth))


def overlap_f1(guess: str, truth: str) -> float:
    """Returns the F1 of the words of two normalized texts, as multisets. If one has no words, 1 if both have none."""
    guessed_words, true_words = normalize_answer(guess).split(), normalize_answer(truth).split()
    if not guessed_words or not true_words:
        return float(guessed_words == true_words)
    same = sum((collections.Counter(guessed_words) & collections.Counter(true_words)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(guessed_words), same / len(true_words)
    return 2 * precision * recall / (precision + recall)


def answer_scores(guess: str, truths: Sequence[str]) -> tuple[float, float]:
    """Returns exact match and F1, each the highest over several true answers. Without true answers "" is right.

    True answers that are empty after normalization are ignored, as in the script of SQuAD 2.
    """
    kept = [truth for truth in truths if normalize_answer(truth)] or [""]
    return max(exact(guess, truth) for truth in kept), max(overlap_f1(guess, truth) for truth in kept)


def squad_metrics(guesses: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns exact_match and f1 in percent, as the scripts print them.

    If some questions have no answer, the scores of questions with and without an answer are returned as well.
    """
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
    """Holds an answer: its first character and the one after its last in the context, and the sum of its two logits."""

    start: int
    end: int
    score: float


@dataclasses.dataclass(frozen=True)
class Answers:
    """Holds the best answers to one question, best first, and the score of "no answer"."""

    best: tuple[Answer, ...]
    nothing: float


def window_answers(logits: np.ndarray, offsets: np.ndarray, *, n_best: int, longest: int) -> list[Answer]:
    """Returns the best answers in one window, best first.

    Args:
      logits: start and end logits of the window's tokens [T, 2].
      offsets: the characters of each token in the context [T, 2]; empty for tokens outside the context.
      n_best: largest number of answers.
      longest: largest number of tokens of an answer.
    """
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
    """Returns the answers to each question, the best of all its windows.

    The score of "no answer" is the lowest score of [CLS] among the windows: no window may contain an answer.

    Args:
      logits: start and end logits of the tokens of all windows [N, 2].
      starts: index of the first token of each window, and N.
      rows: the question that each window belongs to.
      offsets, n_best, longest: as for ``window_answers``.
    """
    candidates: dict[int, list[Answer]] = {}
    nothing: dict[int, float] = {}
    for text, row in enumerate(rows.tolist()):
        part = slice(starts[text], starts[text + 1])
        window = logits[part]
        candidates.setdefault(row, []).extend(window_answers(window, offsets[part], n_best=n_best, longest=longest))
        nothing[row] = min(nothing.get(row, np.inf), float(window[0].sum()))
    return {
        row: Answers(_distinct(sorted(answers, key=lambda a: -a.score))[:n_best], nothing[row])
        for row, answers in candidates.items()
    }


def _distinct(answers: Sequence[Answer]) -> tuple[Answer, ...]:
    """Removes answers with the characters of an earlier one, which overlapping windows both contain."""
    seen: dict[tuple[int, int], Answer] = {}
    for answer in answers:
        seen.setdefault((answer.start, answer.end), answer)
    return tuple(seen.values())
