"""Applies trained models: batched prediction over a data set, metrics, and pipelines."""

from deberta_jax.inference.answers import (
    ChoiceAnswer,
    ChoiceInput,
    FilledMask,
    QuestionAnswer,
    QuestionInput,
    Span,
    SpanAnswer,
    TextAnswer,
    TextInput,
    TokenAnswer,
)
from deberta_jax.inference.cross_encoder import CrossEncoder, RankedDocument
from deberta_jax.inference.fill_mask import MaskFiller
from deberta_jax.inference.pipelines import TaskPipeline, pipeline

__all__ = [
    "ChoiceAnswer",
    "ChoiceInput",
    "CrossEncoder",
    "FilledMask",
    "MaskFiller",
    "QuestionAnswer",
    "QuestionInput",
    "RankedDocument",
    "Span",
    "SpanAnswer",
    "TaskPipeline",
    "TextAnswer",
    "TextInput",
    "TokenAnswer",
    "pipeline",
]
