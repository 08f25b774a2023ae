"""Applies trained models: batched prediction over a data set, metrics, and pipelines."""

from deberta_jax.inference.answers import (
    ChoiceAnswer,
    ChoiceInput,
    EntityAnswer,
    FilledMask,
    QuestionAnswer,
    QuestionInput,
    TextAnswer,
    TextInput,
    TokenAnswer,
    ZeroShotAnswer,
)
from deberta_jax.inference.cross_encoder import CrossEncoder, RankedDocument
from deberta_jax.inference.embedding import Embedder, encode
from deberta_jax.inference.feature_extraction import FeatureExtractor
from deberta_jax.inference.fill_mask import MaskFiller
from deberta_jax.inference.pipelines import pipeline
from deberta_jax.inference.question_answering import QuestionAnswerer
from deberta_jax.inference.task_pipeline import TaskPipeline
from deberta_jax.inference.text_classification import TextClassifier
from deberta_jax.inference.token_classification import TokenClassifier
from deberta_jax.inference.zero_shot import ZeroShotClassifier

__all__ = [
    "ChoiceAnswer",
    "ChoiceInput",
    "CrossEncoder",
    "Embedder",
    "EntityAnswer",
    "FeatureExtractor",
    "FilledMask",
    "MaskFiller",
    "QuestionAnswer",
    "QuestionAnswerer",
    "QuestionInput",
    "RankedDocument",
    "TaskPipeline",
    "TextAnswer",
    "TextClassifier",
    "TextInput",
    "TokenAnswer",
    "TokenClassifier",
    "ZeroShotAnswer",
    "ZeroShotClassifier",
    "encode",
    "pipeline",
]
