"""Defines the pipeline ``zero-shot-classification``: labels chosen at the call, by natural language inference."""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypedDict, Unpack, overload

import numpy as np

from deberta_jax.errors import InputError, shown
from deberta_jax.inference.answers import ZeroShotAnswer
from deberta_jax.inference.calls import Items, Pipeline, blank, check_names, read_text
from deberta_jax.tasks.text_classification import probabilities

_log = logging.getLogger(__name__)

TEMPLATE = "This example is {}."


class ZeroShotOptions(TypedDict, total=False):
    """Holds the arguments of a call of ``ZeroShotClassifier`` that follow ``candidate_labels``."""

    hypothesis_template: str
    multi_label: bool
    max_length: int | None
    batch_size: int


class ZeroShotOptionsOfPipeline(ZeroShotOptions, total=False):
    """Holds all arguments of a call of ``ZeroShotClassifier``."""

    candidate_labels: str | Sequence[str] | None


@dataclasses.dataclass(frozen=True, repr=False)
class ZeroShotClassifier(Pipeline):
    """Classifies texts into labels that the call names, with a model of natural language inference.

    Each label is put into ``hypothesis_template``, and the model says whether the text entails that sentence. As in
    transformers, a text gives ``{"sequence", "labels", "scores"}``, the most probable label first.
    """

    task: ClassVar[str] = "zero-shot-classification"
    arguments: ClassVar[frozenset[str]] = frozenset(ZeroShotOptionsOfPipeline.__annotations__)

    @overload
    def __call__(
        self, sequences: str, candidate_labels: str | Sequence[str] | None = None, **options: Unpack[ZeroShotOptions]
    ) -> ZeroShotAnswer: ...
    @overload
    def __call__(
        self,
        sequences: list[str],
        candidate_labels: str | Sequence[str] | None = None,
        **options: Unpack[ZeroShotOptions],
    ) -> list[ZeroShotAnswer]: ...
    @overload
    def __call__(
        self,
        sequences: Iterable[str],
        candidate_labels: str | Sequence[str] | None = None,
        **options: Unpack[ZeroShotOptions],
    ) -> Iterator[ZeroShotAnswer]: ...
    def __call__(self, sequences: Any, candidate_labels: Any = None, **options: Any) -> Any:
        """Returns the answer, the answers, or an iterator of answers.

        Args:
          sequences: a text, a list of texts, or an iterable of them.
          candidate_labels: the labels, as a list, or as one string with commas between them.
          hypothesis_template: a sentence with ``{}`` in the place of the label; by default "This example is {}.".
          multi_label: whether several labels may hold: each score is then the probability of entailment against
            contradiction. By default the scores of all labels sum to 1.
          max_length: largest number of tokens of a text with a hypothesis; longer texts are cut, hypotheses are not.
          batch_size: number of pairs of text and label in a forward pass.

        Raises:
          InputError: there is no label, or an empty or unreadable text, which the message names by its index; or an
            argument has a value that it cannot have.
        """
        labels = {} if candidate_labels is None else {"candidate_labels": candidate_labels}
        return self._call(sequences, labels | options)

    def __post_init__(self) -> None:
        labels = self.model.config.id2label
        if not labels[entailment_id(labels)].lower().startswith("entail"):
            _log.warning("no label of the model is named entailment; the last one, %r, is taken for it", labels[-1])

    def check_settings(self) -> None:
        check_names(self.settings, self.arguments, self.task)

    def _check(self, options: Mapping[str, Any]) -> None:
        hypotheses_of(options)

    def _answer(self, items: Items, options: Mapping[str, Any]) -> list[Any]:
        texts = [read_text(item, items.where(i)) for i, item in enumerate(items.values)]
        for i, text in enumerate(texts):
            if not text:
                raise InputError(f"{items.where(i)}: is an empty text; leave it out")
        labels, hypotheses = hypotheses_of(options)
        count = len(labels)
        firsts = [text for text in texts for _ in labels]
        features = self._features(firsts, hypotheses * len(texts), options, cut="only_first")
        logits = self._logits(features, options).reshape(len(texts), count, -1)
        broken = self._check_finite(~np.isfinite(logits).all(axis=(1, 2)), items)
        scores = self._scores(np.where(np.isfinite(logits), logits, 0), bool(options.get("multi_label")))
        answers: list[Any] = []
        for text, row in zip(texts, scores, strict=True):
            order = np.argsort(row)[::-1].tolist()
            answers.append(
                {"sequence": text, "labels": [labels[i] for i in order], "scores": [float(row[i]) for i in order]}
            )
        for i in broken:
            answers[i] = blank(answers[i])
        return answers

    def _scores(self, logits: np.ndarray, several: bool) -> np.ndarray:
        """Returns the score of each label [n, labels], from logits [n, labels, C]."""
        entailment = entailment_id(self.model.config.id2label)
        if several or logits.shape[1] == 1:
            contradiction = -1 if entailment == 0 else 0
            return probabilities(logits[..., [contradiction, entailment]])[..., 1]
        return probabilities(logits[..., entailment])


def entailment_id(labels: Sequence[str]) -> int:
    """Returns the number of the first label that begins with "entail", or of the last one if there is none."""
    found = (i for i, label in enumerate(labels) if label.lower().startswith("entail"))
    return next(found, len(labels) - 1)


def hypotheses_of(options: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Returns the labels of a call, and the sentence with each.

    Raises:
      InputError: there is no label, one is no text, or the template has no place for it.
    """
    labels, template = options.get("candidate_labels"), options.get("hypothesis_template", TEMPLATE)
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    if not isinstance(labels, (list, tuple)) or not labels:
        raise InputError(f"candidate_labels={shown(labels)}: give a list of labels, or a string with commas")
    for i, label in enumerate(labels):
        if not isinstance(label, str):
            raise InputError(f"candidate_labels[{i}]: is {shown(label)}; give a str")
    try:
        hypotheses = [template.format(label) for label in labels]
    except (AttributeError, IndexError, KeyError, ValueError):
        hypotheses = [template]
    if hypotheses[0] == template:
        raise InputError(f"hypothesis_template={shown(template)}: give a sentence with {{}} in the place of the label")
    return list(labels), hypotheses
