"""Loads trained models: the model, its tokenizer, and the predictor that applies it to a data set."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deberta_jax import storage
from deberta_jax.config import DebertaConfig
from deberta_jax.data.features import Features, LongTexts, check_vocabulary
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError
from deberta_jax.inference.devices import Device
from deberta_jax.inference.loading import load_for_inference, placed, specs_of
from deberta_jax.inference.long_texts import HOW_READ, LongText, WindowScore, joined_logits, long_features
from deberta_jax.inference.predict import Predictor, Progress
from deberta_jax.models import Model, Runtime
from deberta_jax.tasks import TASK_KINDS, NonFinite, Task, check_finite_rows, finite_answers
from deberta_jax.tasks.text_classification import TextTask
from deberta_jax.text import Tokenizer
from deberta_jax.weights import Check
from deberta_jax.weights.choose import HeadRequest
from deberta_jax.weights.load import plan_head
from deberta_jax.weights.opening import open_source


@dataclasses.dataclass(frozen=True, repr=False)
class Loaded:
    """Holds a trained model, its parameters and tokenizer, and the predictor that applies it to a data set.

    Threads may share one. A pickle holds the parameters and is loaded for all devices of the process that loads it.

    Attributes:
      non_finite: what is done with rows whose scores are NaN or infinite: ``refuse`` them, or answer ``null``.
      long_text: how texts are read that are too long: without their end (``truncate``), as ``long_features`` otherwise.
      window_score: how the scores of a text's windows become one.
    """

    model: Model
    params: Any
    tokenizer: Tokenizer
    predictor: Predictor
    _: dataclasses.KW_ONLY
    non_finite: NonFinite = "refuse"
    long_text: LongText = "truncate"
    window_score: WindowScore = "max"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    def __copy__(self) -> "Loaded":
        return dataclasses.replace(self)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"params": jax.device_get(self.params), "specs": specs_of(self.params)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        params = placed(state["params"], state.pop("specs"), state["predictor"].mesh)
        self.__dict__.update(state, params=params)

    def answers_for(self, task: Task, table: Table, progress: Progress | None = None) -> list[dict[str, Any]]:
        """Returns the task's answer to each row of a table. ``progress`` is as for ``Predictor.logits``.

        Raises:
          InputError: as ``features_of``, or the scores of a row are not finite and ``non_finite`` is ``refuse``.
        """
        features = self.features_of(task, table, labelled=False)
        self.log_long(table.name, LongTexts(features))
        return self.answers_to(task, table, features, progress)

    def answers_to(
        self, task: Task, table: Table, features: Features, progress: Progress | None = None
    ) -> list[dict[str, Any]]:
        """Returns the task's answer to each row of a table, whose tokens are ``features``; as ``answers_for``."""
        logits, joined = self._logits(task, features, progress)
        answers = finite_answers(task.answers, logits, joined, table, self.non_finite)
        if features.row is not None and joined.row is None:
            for answer, count in zip(answers, np.bincount(features.row).tolist(), strict=True):
                answer["windows"] = count
        return answers

    def metrics_for(self, task: Task, table: Table, progress: Progress | None = None) -> Mapping[str, float | None]:
        """Returns the task's metrics on a labelled table.

        Raises:
          InputError: as ``features_of``, or the scores of a row are not finite.
        """
        return task.metrics(*self.labelled_logits(task, table, progress), table)

    def labelled_logits(
        self, task: Task, table: Table, progress: Progress | None = None
    ) -> tuple[np.ndarray, Features]:
        """Returns the logits of a labelled table, and the tokens with their labels; raises as ``metrics_for``."""
        features = self.features_of(task, table, labelled=True)
        self.log_long(table.name, LongTexts(features))
        logits, features = self._logits(task, features, progress)
        check_finite_rows(logits, features, table)
        return logits, features

    def features_of(self, task: Task, table: Table, *, labelled: bool) -> Features:
        """Returns the tokens of a table's rows, of which long ones are read as ``long_text`` says.

        Raises:
          InputError: a row cannot be used, or a token id is outside the model's vocabulary.
        """
        limit = self.predictor.max_length
        if self.long_text == "truncate":
            features = task.features(table, self.tokenizer, limit, labelled=labelled)
        else:
            features = long_features(task, table, self.tokenizer, limit, self.long_text, labelled=labelled)
        check_vocabulary(features, self.model.config.vocab_size, table.name)
        return features

    def log_long(self, where: str, texts: LongTexts) -> None:
        """Logs how many texts were longer than the limit, and how they were read. ``where`` names the file."""
        texts.log(where, self.predictor.max_length, HOW_READ[self.long_text])

    def _logits(self, task: Task, features: Features, progress: Progress | None) -> tuple[np.ndarray, Features]:
        """Returns the logits of the rows of a table, joined from those of windows, and the features that fit them."""
        logits = self.predictor.logits(self.params, features, progress)
        if self.long_text == "truncate" or features.row is None:
            return logits, features
        assert isinstance(task, TextTask)
        joined = joined_logits(logits, features, task.spec.problem_type, self.window_score)
        return joined, dataclasses.replace(features, row=None)


def model_config(
    kind: str, model: str | Path, *, ignore: Sequence[str] = (), base_model: str | Path | None = None
) -> DebertaConfig:
    """Returns the config that a trained model of a kind is loaded with. No weights are read.

    It has as many labels as the file's classifier. Raises InputError as ``pipeline``.
    """
    source = open_source(model, ignore=ignore, base_model=base_model, check=None)
    return plan_head(source, HeadRequest(TASK_KINDS[kind].head)).config


def load_model(kind: str, model: str | Path, **options: Any) -> Loaded:
    """Loads a trained model of a kind of task. The options, and what is raised, are those of ``load_head``."""
    return load_head(TASK_KINDS[kind].head, model, **options)


def load_head(
    head: str,
    model: str | Path,
    *,
    runtime: Runtime = Runtime(),
    max_length: int | None,
    batch_size: int,
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
    revision: str | None = None,
    non_finite: NonFinite = "refuse",
    check: Check = "sampled",
    tokenizer: str | Path | Tokenizer | None = None,
    device: Device = None,
    mesh_fsdp: int = 1,
) -> Loaded:
    """Loads a trained model with a head, a key of ``models.HEADS``.

    ``max_length`` is None for that of the training run. The other arguments, and what is raised, are as for
    ``pipeline``.
    """
    network, params, tokenizer, directory, mesh = load_for_inference(
        head,
        model,
        runtime,
        ignore=ignore,
        base_model=base_model,
        revision=revision,
        allow_non_finite=non_finite == "null",
        check=check,
        tokenizer=tokenizer,
        device=device,
        mesh_fsdp=mesh_fsdp,
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
