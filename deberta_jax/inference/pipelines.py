"""Loads trained models and answers inputs: ``deberta_jax.pipeline("text-classification", "dir or hub id")``.

Tasks, arguments and results are those of transformers' pipelines.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import jax.numpy as jnp

from deberta_jax.errors import InputError, did_you_mean, shown
from deberta_jax.inference.answers import ChoiceAnswer, ChoiceInput
from deberta_jax.inference.calls import Pipeline, check_names
from deberta_jax.inference.devices import Device
from deberta_jax.inference.feature_extraction import FeatureExtractor, FeatureOptionsOfPipeline
from deberta_jax.inference.fill_mask import MaskFiller, MaskOptionsOfPipeline, MaskPredictor
from deberta_jax.inference.loaded import Loaded, load_head
from deberta_jax.inference.question_answering import QuestionAnswerer, QuestionOptionsOfPipeline
from deberta_jax.inference.task_pipeline import TaskPipeline
from deberta_jax.inference.text_classification import TextClassifier, TextOptionsOfPipeline
from deberta_jax.inference.token_classification import TokenClassifier, TokenOptionsOfPipeline
from deberta_jax.inference.zero_shot import ZeroShotClassifier, ZeroShotOptionsOfPipeline
from deberta_jax.models import Runtime
from deberta_jax.tasks import TASK_KINDS, NonFinite
from deberta_jax.text import Tokenizer
from deberta_jax.weights import Check

_ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}

# The head and the class of each task that transformers has.
_PIPELINES: dict[str, tuple[str, type[Pipeline]]] = {
    "text-classification": ("sequence-classification", TextClassifier),
    "zero-shot-classification": ("sequence-classification", ZeroShotClassifier),
    "token-classification": ("token-classification", TokenClassifier),
    "question-answering": ("question-answering", QuestionAnswerer),
    "fill-mask": ("masked-lm", MaskFiller),
    "feature-extraction": ("encoder", FeatureExtractor),
}


class PipelineOptions(TypedDict, total=False):
    """Holds the keyword arguments of ``pipeline``, which describes them."""

    dtype: Any
    max_length: int | None
    batch_size: int
    attention: str
    ignore: Sequence[str]
    base_model: str | Path | None
    revision: str | None
    non_finite: NonFinite
    check: Check
    tokenizer: str | Path | Tokenizer | None
    device: Device
    mesh_fsdp: int


class _Text(PipelineOptions, TextOptionsOfPipeline, total=False): ...


class _ZeroShot(PipelineOptions, ZeroShotOptionsOfPipeline, total=False): ...


class _Token(PipelineOptions, TokenOptionsOfPipeline, total=False): ...


class _Question(PipelineOptions, QuestionOptionsOfPipeline, total=False): ...


class _Mask(PipelineOptions, MaskOptionsOfPipeline, total=False): ...


class _Feature(PipelineOptions, FeatureOptionsOfPipeline, total=False): ...


@overload
def pipeline(
    task: Literal["text-classification", "sentiment-analysis"], model: str | Path, **options: Unpack[_Text]
) -> TextClassifier: ...
@overload
def pipeline(
    task: Literal["zero-shot-classification"], model: str | Path, **options: Unpack[_ZeroShot]
) -> ZeroShotClassifier: ...
@overload
def pipeline(
    task: Literal["token-classification", "ner"], model: str | Path, **options: Unpack[_Token]
) -> TokenClassifier: ...
@overload
def pipeline(
    task: Literal["question-answering"], model: str | Path, **options: Unpack[_Question]
) -> QuestionAnswerer: ...
@overload
def pipeline(task: Literal["fill-mask"], model: str | Path, **options: Unpack[_Mask]) -> MaskFiller: ...
@overload
def pipeline(
    task: Literal["feature-extraction"], model: str | Path, **options: Unpack[_Feature]
) -> FeatureExtractor: ...
@overload
def pipeline(
    task: Literal["multiple-choice"], model: str | Path, **options: Unpack[PipelineOptions]
) -> TaskPipeline[ChoiceInput, ChoiceAnswer]: ...
@overload
def pipeline(task: str, model: str | Path, **options: Any) -> Any: ...
def pipeline(
    task: str,
    model: Any,
    *,
    dtype: Any = jnp.float32,
    max_length: int | None = None,
    batch_size: int = 32,
    attention: str = "auto",
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
    revision: str | None = None,
    non_finite: NonFinite = "refuse",
    check: Check = "sampled",
    tokenizer: Any = None,
    device: Any = None,
    mesh_fsdp: int = 1,
    **settings: Any,
) -> Any:
    """Loads a model for a task, ready to be called, as transformers' ``pipeline`` does.

    Args:
      task: ``text-classification`` (or ``sentiment-analysis``), ``zero-shot-classification``, ``token-classification``
        (or ``ner``), ``question-answering``, ``fill-mask``, ``feature-extraction`` or ``multiple-choice``; or a kind of
        task that was added to ``TASK_KINDS``.
      model: a model directory or a hub id; it must have a trained head for the task.
      dtype: dtype of the computation, or its name; ``auto`` is float32.
      max_length: longest input in tokens; by default that of the training run, else 512. Longer texts are cut, with a
        warning, or for question answering read in windows.
      batch_size: number of texts in a forward pass.
      attention: ``auto``, or the name of an implementation of ``ops.attention``.
      ignore, base_model, revision, check: as for ``from_pretrained``.
      non_finite: what is done with a model whose weights are NaN or infinite, and with inputs whose scores are:
        ``refuse`` them, or answer ``null`` for such inputs: None, or a dict with None for each value.
      tokenizer: a tokenizer of ``load_tokenizer``, or the directory or hub id of one; by default the model's.
      device: one device: a number or a name such as ``cpu``, ``cuda:0`` or ``tpu``; by default all devices.
      mesh_fsdp: number of devices that share a copy of the weights, for models larger than the memory of one; the
        weights of a layer are gathered when they are used.
      **settings: arguments of calls, such as ``top_k`` or ``aggregation_strategy``, which calls may replace.

    Returns:
      A ``TextClassifier``, ``ZeroShotClassifier``, ``TokenClassifier``, ``QuestionAnswerer``, ``MaskFiller``,
      ``FeatureExtractor``, or for other kinds of task a ``TaskPipeline``. The classes describe calls.

    Raises:
      InputError: the task is unknown, the directory is not a model, the model has no such head, or weights that are
        not finite; or an argument is unknown or has a value that it cannot have.
    """
    name = _ALIASES.get(task, task)
    kinds = {kind for kind, spec in TASK_KINDS.items() if spec.pipeline_inputs is not None}
    tasks = (*_PIPELINES, *sorted(kinds - _PIPELINES.keys()), *_ALIASES)
    if task not in tasks:
        raise InputError(f"no pipeline for {task!r}; there is {', '.join(map(repr, tasks))}{did_you_mean(task, tasks)}")
    if not isinstance(model, (str, Path)):
        raise InputError(f"model={shown(model)}: give a model directory or a hub id")
    if not isinstance(tokenizer, (str, Path, Tokenizer, type(None))):
        raise InputError(f"tokenizer={shown(tokenizer)}: give a directory, a hub id, or what load_tokenizer returns")
    head, kind = _PIPELINES[name] if name in _PIPELINES else (TASK_KINDS[name].head, TaskPipeline)
    check_names(settings, kind.arguments - {"max_length", "batch_size"}, f"the pipeline {task!r}")
    parts = load_head(
        head,
        model,
        runtime=Runtime(dtype=_dtype(dtype), attention=attention),
        max_length=max_length,
        batch_size=batch_size,
        ignore=ignore,
        base_model=base_model,
        revision=revision,
        non_finite=non_finite,
        check=check,
        tokenizer=tokenizer,
        device=device,
        mesh_fsdp=mesh_fsdp,
    )
    return _make(name, kind, parts, settings)


def _make(name: str, kind: type[Pipeline], parts: Loaded, settings: dict[str, Any]) -> Pipeline:
    """Returns the pipeline of a loaded model. Raises InputError for settings with a value that they cannot have."""
    more: dict[str, Any] = {}
    if kind is MaskFiller:
        more["masks"] = MaskPredictor(parts.model, parts.tokenizer.vocab_size, parts.predictor.mesh)
    elif kind is TaskPipeline:
        TASK_KINDS[name].check_config(parts.model.config)
        more["kind"] = name
    loaded = (parts.model, parts.params, parts.tokenizer, parts.predictor)
    pipe = kind(*loaded, non_finite=parts.non_finite, settings=settings, **more)
    pipe.check_settings()
    return pipe


def _dtype(dtype: Any) -> Any:
    """Returns a dtype, given it or its name. Raises InputError if it is no floating-point type of JAX."""
    if isinstance(dtype, str) and dtype == "auto":
        return jnp.float32
    try:
        if jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            return jnp.dtype(dtype)
    except TypeError:
        pass
    raise InputError(f"dtype={shown(dtype)}: give jax.numpy.float32, jax.numpy.bfloat16, their names, or 'auto'")
