"""Defines the models as Flax modules, and ``HEADS``, the registry of heads. Only this package uses Flax."""

from deberta_jax.models.backbone import BackboneOutput
from deberta_jax.models.base import Model, Params
from deberta_jax.models.classes import (
    DebertaEncoder,
    DebertaForMaskedLM,
    DebertaForMultipleChoice,
    DebertaForQuestionAnswering,
    DebertaForReplacedTokenDetection,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
)
from deberta_jax.models.hooks import capture, patch
from deberta_jax.models.inputs import Inputs
from deberta_jax.models.layers import Runtime
from deberta_jax.models.outputs import EncoderOutput, HeadOutput, ProjectionInputs, SpanOutput
from deberta_jax.models.parameters import abstract_params, init_params, logical_axes, reinitialize_layers
from deberta_jax.models.prepare import prepare_for_inference
from deberta_jax.models.registry import HEADS, HeadSpec, all_parts, head_spec, spec_of_model
from deberta_jax.models.summary import summary

__all__ = [
    "HEADS",
    "BackboneOutput",
    "DebertaEncoder",
    "DebertaForMaskedLM",
    "DebertaForMultipleChoice",
    "DebertaForQuestionAnswering",
    "DebertaForReplacedTokenDetection",
    "DebertaForSequenceClassification",
    "DebertaForTokenClassification",
    "EncoderOutput",
    "HeadOutput",
    "HeadSpec",
    "Inputs",
    "Model",
    "Params",
    "ProjectionInputs",
    "Runtime",
    "SpanOutput",
    "abstract_params",
    "capture",
    "init_params",
    "logical_axes",
    "patch",
    "prepare_for_inference",
    "reinitialize_layers",
    "summary",
]
