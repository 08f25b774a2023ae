"""Loads trained models and answers single inputs: ``deberta_jax.pipeline("text-classification", "dir or hub id")``."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, TypeVar, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax import storage
from deberta_jax.config import DebertaConfig
from deberta_jax.data.features import Features, check_vocabulary, log_cut
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError, did_you_mean
from deberta_jax.inference.answers import (
    ChoiceAnswer,
    ChoiceInput,
    QuestionAnswer,
    QuestionInput,
    TextAnswer,
    TextInput,
    TokenAnswer,
)
from deberta_jax.inference.fill_mask import FILL_MASK, MaskFiller, load_mask_filler
from deberta_jax.inference.loading import load_for_inference
from deberta_jax.inference.predict import Predictor, Progress
from deberta_jax.models import Model, Runtime
from deberta_jax.sharding import replicated
from deberta_jax.tasks import (
    TASK_KINDS,
    NonFinite,
    PipelineInputs,
    Task,
    TaskOptions,
    check_finite_rows,
    finite_answers,
    task_of_model,
)
from deberta_jax.text import Tokenizer
from deberta_jax.weights import Check
from deberta_jax.weights.choose import HeadRequest
from deberta_jax.weights.load import plan_head
from deberta_jax.weights.opening import open_source

Input = TypeVar("Input")
Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True, repr=False)
class Loaded:
    """Holds a trained model, its parameters and tokenizer, and the predictor that applies it to a data set.

    Threads may share one. A pickle holds the parameters and is loaded for all devices of the process that loads it.

    Attributes:
      non_finite: what is done with rows whose scores are NaN or infinite: ``refuse`` them, or answer ``null``.
    """

    model: Model
    params: Any
    tokenizer: Tokenizer
    predictor: Predictor
    _: dataclasses.KW_ONLY
    non_finite: NonFinite = "refuse"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    def __copy__(self) -> "Loaded":
        return dataclasses.replace(self)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"params": jax.device_get(self.params)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, params=replicated(state["params"], state["predictor"].mesh))

    def answers_for(self, task: Task, table: Table, progress: Progress | None = None) -> list[dict[str, Any]]:
        """Returns the task's answer to each row of a table. ``progress`` is as for ``Predictor.logits``.

        Raises:
          InputError: as ``features_of``, or the scores of a row are not finite and ``non_finite`` is ``refuse``.
        """
        features = self.features_of(task, table, labelled=False)
        logits = self.predictor.logits(self.params, features, progress)
        return finite_answers(task.answers, logits, features, table, self.non_finite)

    def metrics_for(self, task: Task, table: Table, progress: Progress | None = None) -> Mapping[str, float | None]:
        """Returns the task's metrics on a labelled table.

        Raises:
          InputError: as ``features_of``, or the scores of a row are not finite.
        """
        features = self.features_of(task, table, labelled=True)
        logits = self.predictor.logits(self.params, features, progress)
        check_finite_rows(logits, features, table)
        return task.metrics(logits, features, table)

    def features_of(self, task: Task, table: Table, *, labelled: bool) -> Features:
        """Returns the tokens of a table's rows, and logs how many rows were truncated.

        Raises:
          InputError: a row cannot be used, or a token id is outside the model's vocabulary.
        """
        features = task.features(table, self.tokenizer, self.predictor.max_length, labelled=labelled)
        check_vocabulary(features, self.model.config.vocab_size, table.name)
        log_cut(features, table.name, self.predictor.max_length)
        return features


@dataclasses.dataclass(frozen=True, repr=False)
class TaskPipeline(Loaded, Generic[Input, Answer]):
    """Answers inputs with a trained model. Call it with one input or a list of inputs.

    ``pipe(input)`` returns an answer, ``pipe([input, ...])`` a list of answers in the same order. By kind:

    - text-classification: a text, or ``{"text": ..., "text_pair": ...}``; the answer is ``{"label", "score"}``. The
      score is the label's probability, or the number of a regression. If a text may have several labels, the answer is
      ``{"labels": [...], "probabilities": {...}}``.
    - token-classification: a text; the answer is ``{"tags", "scores", "offsets", "spans"}``, with offsets and spans
      in characters of the text. Split texts are given as a list of lists of words, or with
      ``is_split_into_words=True`` as one list of words; spans are then in words.
    - question-answering: ``{"question": ..., "context": ...}``; the answer is ``{"answer", "start", "end", "score",
      "n_best"}``.
    - multiple-choice: ``{"text": ..., "choices": [...]}``; the answer is ``{"choice", "text", "probabilities"}``.

    Attributes:
      kind: the name of the kind of task.
      options: the options for answers in a context: their length, the overlap of windows, and when there is none.
    """

    kind: str
    options: TaskOptions = dataclasses.field(default_factory=TaskOptions)

    @overload
    def __call__(self, inputs: Input) -> Answer: ...
    @overload
    def __call__(self, inputs: Iterable[Input]) -> list[Answer]: ...
    @overload
    def __call__(self, inputs: Any, *args: Any, **keywords: Any) -> Any: ...
    def __call__(self, inputs: Any, *args: Any, **keywords: Any) -> Any:
        """Returns the answer or the answers.

        Raises:
          InputError: the kind of task cannot read an input; or the scores of one are not finite and ``non_finite`` is
            ``refuse``.
        """
        parsed = self._read(inputs, *args, **keywords)
        if not len(parsed.table):
            return []
        task, features = self._features(parsed)
        logits = self.predictor.logits(self.params, features)
        answers = finite_answers(task.pipeline_answers, logits, features, parsed.table, self.non_finite)
        return answers[0] if parsed.single else answers

    def logits(self, inputs: Any, *args: Any, **keywords: Any) -> np.ndarray:
        """Returns the logits that the answers are computed from, float32 [n, K], or of all tokens [N, K].

        The arguments are those of a call. Inputs are truncated to the predictor's ``max_length`` tokens.
        """
        return self.predictor.logits(self.params, self._features(self._read(inputs, *args, **keywords))[1])

    def _read(self, inputs: Any, *args: Any, **keywords: Any) -> PipelineInputs:
        read = TASK_KINDS[self.kind].pipeline_inputs
        assert read is not None
        return read(inputs, *args, **keywords)

    def _features(self, parsed: PipelineInputs) -> tuple[Task, Features]:
        options = dataclasses.replace(self.options, task=self.kind, **dataclasses.asdict(parsed.columns))
        task = task_of_model(options, self.model.config, parsed.table)
        return task, self.features_of(task, parsed.table, labelled=False)


class PipelineOptions(TypedDict, total=False):
    """Holds the keyword arguments of ``pipeline``, which describes them."""

    dtype: Any
    max_length: int | None
    batch_size: int
    attention: str
    ignore: Sequence[str]
    base_model: str | Path | None
    non_finite: NonFinite
    check: Check


@overload
def pipeline(
    task: Literal["text-classification"], model: str | Path, **options: Unpack[PipelineOptions]
) -> TaskPipeline[TextInput, TextAnswer]: ...
@overload
def pipeline(
    task: Literal["token-classification"], model: str | Path, **options: Unpack[PipelineOptions]
) -> TaskPipeline[str, TokenAnswer]: ...
@overload
def pipeline(
    task: Literal["question-answering"], model: str | Path, **options: Unpack[PipelineOptions]
) -> TaskPipeline[QuestionInput, QuestionAnswer]: ...
@overload
def pipeline(
    task: Literal["multiple-choice"], model: str | Path, **options: Unpack[PipelineOptions]
) -> TaskPipeline[ChoiceInput, ChoiceAnswer]: ...
@overload
def pipeline(task: Literal["fill-mask"], model: str | Path, **options: Unpack[PipelineOptions]) -> MaskFiller: ...
@overload
def pipeline(task: str, model: str | Path, **options: Unpack[PipelineOptions]) -> Any: ...
def pipeline(
    task: str,
    model: str | Path,
    *,
    dtype: Any = jnp.float32,
    max_length: int | None = None,
    batch_size: int = 32,
    attention: str = "auto",
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
    non_finite: NonFinite = "refuse",
    check: Check = "sampled",
) -> Any:
    """Loads a model for a task on all devices, ready to be called.

    Args:
      task: ``text-classification``, ``token-classification``, ``question-answering``, ``multiple-choice`` or
        ``fill-mask``; or a kind of task that was added to ``TASK_KINDS``.
      model: a model directory or a hub id; it must have a trained head of that kind.
      dtype: dtype of the computation.
      max_length: longest input in tokens; by default that of the training run, else 512.
      batch_size: number of texts in a forward pass.
      attention: ``auto``, or the name of an implementation of ``ops.attention``.
      ignore, base_model, check: as for ``from_pretrained``.
      non_finite: what is done with a model whose weights are NaN or infinite, and with inputs whose scores are:
        ``refuse`` them, or answer ``null`` for such inputs (not for ``fill-mask``).

    Returns:
      A ``TaskPipeline``, or for ``fill-mask`` a ``MaskFiller``.

    Raises:
      InputError: the task is unknown, the directory is not a model, or the model has no such head, or weights that are
        not finite.
    """
    kinds = {name: kind for name, kind in TASK_KINDS.items() if kind.pipeline_inputs is not None}
    if task not in (*kinds, FILL_MASK):
        names = (*kinds, FILL_MASK)
        raise InputError(f"no pipeline for {task!r}; there is {', '.join(map(repr, names))}{did_you_mean(task, names)}")
    settings: dict[str, Any] = {
        "runtime": Runtime(dtype=dtype, attention=attention),
        "max_length": max_length,
        "batch_size": batch_size,
        "ignore": ignore,
        "base_model": base_model,
        "check": check,
    }
    if task == FILL_MASK:
        if non_finite != "refuse":
            raise InputError(f"non_finite={non_finite!r}: {FILL_MASK} has no answer for scores that are not finite")
        return load_mask_filler(model, **settings)
    parts = load_model(task, model, **settings, non_finite=non_finite)
    kinds[task].check_config(parts.model.config)
    return TaskPipeline(parts.model, parts.params, parts.tokenizer, parts.predictor, task, non_finite=non_finite)


def model_config(
    kind: str, model: str | Path, *, ignore: Sequence[str] = (), base_model: str | Path | None = None
) -> DebertaConfig:
    """Returns the config that a trained model of a kind is loaded with. No weights are read.

    It has as many labels as the file's classifier. Raises InputError as ``pipeline``.
    """
    source = open_source(model, ignore=ignore, base_model=base_model, check=None)
    return plan_head(source, HeadRequest(TASK_KINDS[kind].head)).config


def load_model(
    kind: str,
    model: str | Path,
    *,
    runtime: Runtime = Runtime(),
    max_length: int | None,
    batch_size: int,
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
    non_finite: NonFinite = "refuse",
    check: Check = "sampled",
) -> Loaded:
    """Loads a trained model of a kind of task on all devices.

    ``max_length`` is None for that of the training run. Raises InputError as ``pipeline``.
    """
    network, params, tokenizer, directory, mesh = load_for_inference(
        TASK_KINDS[kind].head,
        model,
        runtime,
        ignore=ignore,
        base_model=base_model,
        allow_non_finite=non_finite == "null",
        check=check,
    )
    limit = trained_length(directory) if max_length is None else max_length
    predictor = Predictor(network, tokenizer.pad_id, max_length=limit, batch_size=batch_size, mesh=mesh)
    return Loaded(network, params, tokenizer, predictor, non_finite=non_finite)


def trained_length(directory: Path) -> int:
    """Returns the ``max_length`` of the run that made a model directory; 512 if there is no record of a run."""
    record = trained_experiment(directory)
    if record is None:
        return 512
    try:
        return int(record["max_length"])
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{directory / 'experiment.json'}: records no max_length; give one, or remove the file"
        ) from None


def trained_experiment(directory: Path) -> dict[str, Any] | None:
    """Returns the experiment of the run that made a model directory, from ``experiment.json``.

    Returns None if there is no such file, and {} if another program wrote it.
    """
    record = directory / "experiment.json"
    if not record.is_file():
        return None
    try:
        experiment = storage.read_json_object(record).get("experiment")
    except InputError:
        return {}
    return experiment if isinstance(experiment, dict) else {}
