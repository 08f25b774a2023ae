"""Groups labelled tokens to named entities, by the strategies of transformers' token-classification pipeline."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from deberta_jax.text import Tokenizer
from deberta_jax.text.words import text_of_pieces

STRATEGIES = ("none", "simple", "first", "average", "max")


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Holds a token and the probabilities of its labels.

    Attributes:
      token: its id.
      piece: its piece, or its text if it is [UNK].
      text: its characters.
      scores: the probability of each label [C].
      start, end: its first and last (exclusive) character.
      index: its number in the row, counting special tokens.
      within: the token continues a word.
    """

    token: int
    piece: str
    text: str
    scores: np.ndarray
    start: int
    end: int
    index: int
    within: bool


@dataclasses.dataclass(frozen=True)
class Unit:
    """Holds a token or a word with its one label."""

    tokens: Sequence[Labelled]
    label: str
    score: float


def aggregate(
    tokens: Sequence[Labelled], strategy: str, labels: Sequence[str], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """Returns ``TokenAnswer`` of each token, or with a strategy other than ``none`` ``EntityAnswer`` of each group."""
    if strategy in ("none", "simple"):
        units = [Unit([token], *_best(token.scores, labels)) for token in tokens]
    else:
        units = [_word(word, strategy, labels) for word in _words(tokens)]
    if strategy == "none":
        return [
            {
                "entity": unit.label,
                "score": unit.score,
                "index": token.index,
                "word": token.piece,
                "start": token.start,
                "end": token.end,
            }
            for unit in units
            for token in unit.tokens
        ]
    return [_entity(group, tokenizer) for group in _groups(units)]


def without(answers: Sequence[dict[str, Any]], ignored: Collection[str]) -> list[dict[str, Any]]:
    """Returns the answers whose label is not ignored."""
    return [a for a in answers if a.get("entity") not in ignored and a.get("entity_group") not in ignored]


def merge_windows(windows: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Returns the answers of all windows of a text in order. Of those that overlap the longest is kept.

    Of two equally long ones that with the larger score is kept.
    """
    if len(windows) == 1:
        return windows[0]
    kept: list[dict[str, Any]] = []
    for answer in sorted((a for window in windows for a in window), key=lambda a: a["start"]):
        if kept and kept[-1]["start"] <= answer["start"] < kept[-1]["end"]:
            rank = lambda a: (a["end"] - a["start"], a["score"])
            kept[-1] = max(kept[-1], answer, key=rank)
        else:
            kept.append(answer)
    return kept


def _best(scores: np.ndarray, labels: Sequence[str]) -> tuple[str, float]:
    best = int(scores.argmax())
    return labels[best], float(scores[best])


def _words(tokens: Sequence[Labelled]) -> list[list[Labelled]]:
    """Divides tokens into words."""
    words: list[list[Labelled]] = []
    for token in tokens:
        if words and token.within:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _word(tokens: Sequence[Labelled], strategy: str, labels: Sequence[str]) -> Unit:
    """Returns a word with the label that the strategy gives it."""
    if strategy == "average":
        scores = np.mean([token.scores for token in tokens], axis=0)
    elif strategy == "max":
        scores = max(tokens, key=lambda token: token.scores.max()).scores
    else:
        scores = tokens[0].scores
    return Unit(tokens, *_best(scores, labels))


def _groups(units: Sequence[Unit]) -> list[list[Unit]]:
    """Groups neighbours with one type. ``B-`` begins a group; a label without ``B-`` or ``I-`` continues one."""
    groups: list[list[Unit]] = []
    for unit in units:
        if groups and not unit.label.startswith("B-") and _type(unit.label) == _type(groups[-1][-1].label):
            groups[-1].append(unit)
        else:
            groups.append([unit])
    return groups


def _type(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _entity(units: Sequence[Unit], tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the answer for a group; its score is the mean of those of its tokens or words."""
    tokens = [token for unit in units for token in unit.tokens]
    return {
        "entity_group": units[0].label.split("-", 1)[-1],
        "score": float(np.mean([unit.score for unit in units])),
        "word": text_of_pieces(tokenizer, [token.token for token in tokens], [token.text for token in tokens]),
        "start": tokens[0].start,
        "end": tokens[-1].end,
    }
