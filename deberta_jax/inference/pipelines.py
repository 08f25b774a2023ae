"""Loads trained models and answers single inputs: ``deberta_jax.pipeline("text-classification", "dir or hub id")``."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax import hub, storage
from deberta_jax.config import DebertaConfig
from deberta_jax.data.features import Features, check_vocabulary, log_cut
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError
from deberta_jax.inference.fill_mask import FILL_MASK, load_mask_filler
from deberta_jax.inference.predict import Predictor, Progress
from deberta_jax.models import Model, Runtime, prepare_for_inference
from deberta_jax.sharding import make_mesh
from deberta_jax.tasks import TASK_KINDS, PipelineInputs, Task, TaskOptions, task_of_model
from deberta_jax.text import Tokenizer, load_tokenizer
from deberta_jax.weights import load, tokenizer_directory
from deberta_jax.weights.choose import HeadRequest
from deberta_jax.weights.load import plan_head
from deberta_jax.weights.opening import open_source


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A trained model with its tokenizer and the predictor that runs it over a data set."""

    model: Model
    params: Any
    tokenizer: Tokenizer
    predictor: Predictor

    def answers_for(self, task: Task, table: Table, progress: Progress | None = None) -> list[dict[str, Any]]:
        """Returns the task's answer to each row of a table; ``progress`` is called with the number of rows done."""
        features = self.features_of(task, table, labelled=False)
        return task.answers(self.predictor.logits(self.params, features, progress), features, table)

    def metrics_for(self, task: Task, table: Table, progress: Progress | None = None) -> Mapping[str, float | None]:
        """Returns the task's metrics on a labelled table."""
        features = self.features_of(task, table, labelled=True)
        return task.metrics(self.predictor.logits(self.params, features, progress), features, table)

    def features_of(self, task: Task, table: Table, *, labelled: bool) -> Features:
        """Returns the tokens of a table's rows, and logs how many rows were cut. Raises InputError for a row that
        cannot be used, or a tokenizer whose ids the model does not have."""
        features = task.features(table, self.tokenizer, self.predictor.max_length, labelled=labelled)
        check_vocabulary(features, self.model.config.vocab_size, table.name)
        log_cut(features, table.name, self.predictor.max_length)
        return features


@dataclasses.dataclass(frozen=True)
class TaskPipeline(Loaded):
    """A ready model of a kind of task: call it with one input or a list of inputs.

    ``pipe(input)`` returns an answer, ``pipe([input, ...])`` a list of answers in the same order. By kind:

    - text-classification: a text, or ``{"text": ..., "text_pair": ...}``; the answer is ``{"label", "score"}``, the
      score being the label's probability; of a regression, the number itself. Of a model with several labels a text it
      is ``{"labels": [...], "probabilities": {...}}``.
    - token-classification: a text; the answer is ``{"tags", "scores", "offsets", "spans"}``, where offsets and spans
      are in characters of the text. Words that are split already are given as a list of lists of words, or, with
      ``is_split_into_words=True``, as one list of words; then spans are in words.
    - question-answering: ``{"question": ..., "context": ...}``; the answer is ``{"answer", "start", "end", "score",
      "n_best"}``.
    - multiple-choice: ``{"text": ..., "choices": [...]}``; the answer is ``{"choice", "text", "probabilities"}``.

    Attributes:
      kind: the name of the kind of task.
      options: how long answers may be, how windows of a context overlap, when there is no answer.
    """

    kind: str
    options: TaskOptions = dataclasses.field(default_factory=TaskOptions)

    def __call__(self, inputs: Any, *args: Any, **keywords: Any) -> Any:
        """Returns the answer or the answers. Raises InputError for an input that the kind of task does not read."""
        asked = self._read(inputs, *args, **keywords)
        if not len(asked.table):
            return []
        task, features = self._features(asked)
        answers = task.pipeline_answers(self.predictor.logits(self.params, features), features, asked.table)
        return answers[0] if asked.single else answers

    def logits(self, inputs: Any, *args: Any, **keywords: Any) -> np.ndarray:
        """Returns the float32 logits that the answers are made from: [n, K], or of all tokens [N, K]; inputs as for
        calls, each cut to the predictor's ``max_length`` tokens."""
        return self.predictor.logits(self.params, self._features(self._read(inputs, *args, **keywords))[1])

    def _read(self, inputs: Any, *args: Any, **keywords: Any) -> PipelineInputs:
        read = TASK_KINDS[self.kind].pipeline_inputs
        assert read is not None
        return read(inputs, *args, **keywords)

    def _features(self, asked: PipelineInputs) -> tuple[Task, Features]:
        options = dataclasses.replace(self.options, task=self.kind, **dataclasses.asdict(asked.columns))
        task = task_of_model(options, self.model.config, asked.table)
        return task, self.features_of(task, asked.table, labelled=False)


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
) -> Any:
    """Loads a model for a task on all devices, ready to be called.

    Args:
      task: ``text-classification``, ``token-classification``, ``question-answering``, ``multiple-choice`` or
        ``fill-mask``; or a kind of task that was added to ``TASK_KINDS``.
      model: a model directory or a hub id; it must hold a trained head of that kind.
      dtype: of the computation.
      max_length: longest input in tokens; by default what ``finetune`` trained the model with, else 512.
      batch_size: texts in a forward pass.
      ignore, base_model: as ``from_pretrained``.

    Returns:
      A ``TaskPipeline``, or for ``fill-mask`` a ``MaskFiller``.

    Raises:
      InputError: an unknown task, a directory that is no model, or one without such a head.
    """
    kinds = {name: kind for name, kind in TASK_KINDS.items() if kind.pipeline_inputs is not None}
    if task not in (*kinds, FILL_MASK):
        raise InputError(f"no pipeline for {task!r}; there is {', '.join(map(repr, (*kinds, FILL_MASK)))}")
    settings: dict[str, Any] = {
        "runtime": Runtime(dtype=dtype, attention=attention),
        "max_length": max_length,
        "batch_size": batch_size,
        "ignore": ignore,
        "base_model": base_model,
    }
    if task == FILL_MASK:
        return load_mask_filler(model, **settings)
    parts = load_model(task, model, **settings)
    kinds[task].check_config(parts.model.config)
    return TaskPipeline(parts.model, parts.params, parts.tokenizer, parts.predictor, task)


def model_config(
    kind: str, model: str | Path, *, ignore: Sequence[str] = (), base_model: str | Path | None = None
) -> DebertaConfig:
    """Returns the config that a trained model of a kind loads with, without its weights; it has as many labels as the
    file's classifier. Raises InputError as ``pipeline``."""
    source = open_source(model, ignore=ignore, base_model=base_model)
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
) -> Loaded:
    """Loads a trained model of a kind of task on all devices. Raises InputError as ``pipeline``."""
    directory, head = hub.resolve(model), TASK_KINDS[kind].head
    tokenizer = load_tokenizer(tokenizer_directory(directory, base_model=base_model))
    source = model if hub.split_file(str(model))[1] else directory
    network, params, _ = load(source, head, runtime, ignore=ignore, base_model=base_model)
    mesh = make_mesh()
    network, params = prepare_for_inference(network, params)
    params = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    limit = trained_length(directory) if max_length is None else max_length
    predictor = Predictor(network, tokenizer.pad_id, max_length=limit, batch_size=batch_size, mesh=mesh)
    return Loaded(network, params, tokenizer, predictor)


def trained_length(directory: Path) -> int:
    """Returns the ``max_length`` of the run that made this model directory; 512 where none is recorded."""
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
    """Returns the experiment of the run that made this model directory; None where there is none, {} for a file of
    another program."""
    record = directory / "experiment.json"
    if not record.is_file():
        return None
    try:
        found = storage.read_json(record).get("experiment")
    except (ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}
