"""Defines the types of the inputs and answers of pipelines, which at run time are ordinary dicts."""

from collections.abc import Mapping
from typing import Any, TypedDict

TextInput = str | tuple[str, str] | Mapping[str, str]
"""A text, a pair of texts, or ``{"text": ..., "text_pair": ...}``."""


class TextAnswer(TypedDict):
    """Holds a label of a text, and its score: a probability, or the number of a regression."""

    label: str
    score: float


class ZeroShotAnswer(TypedDict):
    """Holds a text, the candidate labels, the most probable first, and the score of each."""

    sequence: str
    labels: list[str]
    scores: list[float]


class TokenAnswer(TypedDict):
    """Holds the label of a token, its probability, the token's number in its row, and its characters in the text.

    Answers with ``aggregation_strategy`` are ``EntityAnswer``.
    """

    entity: str
    score: float
    index: int
    word: str
    start: int
    end: int


class EntityAnswer(TypedDict):
    """Holds a named entity: its label, its probability, its text, and its first and last (exclusive) character."""

    entity_group: str
    score: float
    word: str
    start: int
    end: int


class QuestionAnswer(TypedDict):
    """Holds an answer in a context, its probability, and its first and last (exclusive) character.

    The answer is empty if the question has none.
    """

    score: float
    start: int
    end: int
    answer: str


class ChoiceAnswer(TypedDict):
    """Holds the number of the best choice, its text, and the probability of each choice."""

    choice: int
    text: str
    probabilities: list[float]


class FilledMask(TypedDict):
    """Holds a token for a [MASK]: its probability, id and text, and the input with this token in its place."""

    score: float
    token: int
    token_str: str
    sequence: str


QuestionInput = Mapping[str, str]
"""``{"question": ..., "context": ...}``."""

ChoiceInput = Mapping[str, Any]
"""``{"text": ..., "choices": [...]}``."""
