"""Defines the types of the inputs and answers of pipelines, which at run time are ordinary dicts."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

TextInput = str | tuple[str, str] | Mapping[str, str]
"""A text, a pair of texts, or ``{"text": ..., "text_pair": ...}``."""


class TextAnswer(TypedDict):
    """Holds the label of a text and its probability; of a regression the number as ``score``.

    If a text may have several labels, the answer has ``labels`` and ``probabilities`` instead.
    """

    label: str
    score: float
    labels: NotRequired[list[str]]
    probabilities: NotRequired[dict[str, float]]


class Span(TypedDict):
    """Holds a named span: ``start`` and ``end`` in characters of the text, or in words of a split text."""

    label: str
    start: int
    end: int
    text: str
    score: NotRequired[float]


class TokenAnswer(TypedDict):
    """Holds the tag of each word, its probability, and its first and last (exclusive) character.

    ``offsets`` is left out for texts that are split into words, ``spans`` if tags do not mark any.
    """

    tags: list[str]
    scores: list[float]
    offsets: list[list[int]]
    spans: list[Span]


class SpanAnswer(TypedDict):
    """Holds an answer in a context, its first and last (exclusive) character, and its probability."""

    answer: str
    start: int
    end: int
    score: float


class QuestionAnswer(SpanAnswer):
    """Holds the best answer to a question; it is empty if there is none. ``n_best`` are the best ones in order."""

    n_best: list[SpanAnswer]
    no_answer_margin: NotRequired[float]


class ChoiceAnswer(TypedDict):
    """Holds the number of the best choice, its text, and the probability of each choice."""

    choice: int
    text: str
    probabilities: list[float]


class FilledMask(TypedDict):
    """Holds a token for a [MASK]: its probability, id and text."""

    score: float
    token: int
    token_str: str


QuestionInput = Mapping[str, str]
"""``{"question": ..., "context": ...}``."""

ChoiceInput = Mapping[str, Any]
"""``{"text": ..., "choices": [...]}``."""
