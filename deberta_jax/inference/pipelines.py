"""Text in, answer out: ``deberta_jax.pipeline("text-classification", "dir or hub id")``."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax import hub
from deberta_jax.data.features import check_vocabulary, make_features
from deberta_jax.data.labels import REGRESSION
from deberta_jax.errors import InputError
from deberta_jax.inference.predict import Predictor, Progress, probabilities, problem_of
from deberta_jax.models import Model
from deberta_jax.sharding import make_mesh
from deberta_jax.text import Tokenizer, load_tokenizer
from deberta_jax.weights import from_pretrained

TASKS = ("text-classification",)
Text = str | Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class TextClassifier:
    """A sequence classifier with its tokenizer; call it, or read the logits of many texts.

    ``pipe("text")`` or ``pipe({"text": ..., "text_pair": ...})`` gives ``{"label": ..., "score": ...}``, a list of
    those gives a list in the same order. The score is the label's probability; of a regression, the number itself.
    """

    model: Model
    params: Any
    tokenizer: Tokenizer
    predictor: Predictor

    @overload
    def __call__(self, inputs: Text) -> dict[str, Any]: ...
    @overload
    def __call__(self, inputs: Sequence[Text]) -> list[dict[str, Any]]: ...
    def __call__(self, inputs: Any) -> dict[str, Any] | list[dict[str, Any]]:
        """Raises InputError for an input that is no text and no mapping of ``text`` and ``text_pair``."""
        single = not isinstance(inputs, Iterable) or isinstance(inputs, (str, Mapping))
        parts = [_parts(item) for item in ([inputs] if single else inputs)]
        if not parts:
            return []
        if len({pair is None for _, pair in parts}) > 1:
            raise InputError("some inputs have a text_pair and some have none; give one kind at a time")
        pairs = None if parts[0][1] is None else [pair for _, pair in parts if pair is not None]
        logits = self.logits([text for text, _ in parts], pairs)
        results = [self.answer(row) for row in logits]
        return results[0] if single else results

    def logits(
        self, texts: Sequence[str], text_pairs: Sequence[str] | None = None, progress: Progress | None = None
    ) -> np.ndarray:
        """Float32 logits [n, C] in the order of the texts, each cut to the predictor's ``max_length`` tokens."""
        features = make_features(self.tokenizer, texts, text_pairs, max_length=self.predictor.max_length)
        check_vocabulary(features, self.model.config.vocab_size, "the input")
        return self.predictor.logits(self.params, features, progress)

    def answer(self, logits: np.ndarray) -> dict[str, Any]:
        """Logits [C] of one text as label and score."""
        labels = self.model.config.id2label
        if self.regression:
            return {"label": labels[0], "score": float(logits[0])}
        best = int(logits.argmax())
        return {"label": labels[best], "score": float(probabilities(logits)[best])}

    @property
    def regression(self) -> bool:
        return problem_of(self.model.config) == REGRESSION


def pipeline(
    task: str,
    model: str | Path,
    *,
    dtype: Any = jnp.float32,
    max_length: int | None = None,
    batch_size: int = 32,
    attention: str = "auto",
) -> TextClassifier:
    """A ready model for a task, on all devices.

    Args:
      task: ``text-classification``.
      model: a model directory or a hub id; it must hold a trained classifier.
      dtype: of the computation.
      max_length: longest input in tokens; by default what ``finetune`` trained the model with, else 512.
      batch_size: texts in a forward pass.

    Raises:
      InputError: an unknown task, a directory that is no model, or one without a classifier of one label a text.
    """
    if task not in TASKS:
        raise InputError(f"no pipeline for {task!r}; there is {', '.join(map(repr, TASKS))}")
    directory = hub.resolve(model)
    tokenizer = load_tokenizer(directory)
    network, params = from_pretrained(directory, head="sequence-classification", dtype=dtype, attention=attention)
    problem_of(network.config)
    mesh = make_mesh()
    params = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    limit = trained_length(directory) if max_length is None else max_length
    predictor = Predictor(network, tokenizer.pad_id, max_length=limit, batch_size=batch_size, mesh=mesh)
    return TextClassifier(network, params, tokenizer, predictor)


def trained_length(directory: Path) -> int:
    """The ``max_length`` of the run that made this model directory; 512 where none is recorded."""
    record = directory / "experiment.json"
    if not record.is_file():
        return 512
    try:
        return int(json.loads(record.read_text(encoding="utf-8"))["experiment"]["max_length"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{record}: records no max_length; give one, or remove the file") from None


def _parts(item: Any) -> tuple[str, str | None]:
    if isinstance(item, str):
        return item, None
    if isinstance(item, Mapping) and isinstance(item.get("text"), str):
        pair = item.get("text_pair")
        if (pair is None or isinstance(pair, str)) and not set(item) - {"text", "text_pair"}:
            return item["text"], pair
    raise InputError(f"cannot read the input {item!r}; give a str, or {{'text': ..., 'text_pair': ...}}")
