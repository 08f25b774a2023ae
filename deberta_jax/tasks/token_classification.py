"""Defines tagging of lists of words (``WordTask``). The prediction for a word is that of its first token.

``entity_recognition`` defines tagging of raw texts with named spans of characters.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.data.features import Features, word_features
from deberta_jax.data.labels import SKIP, LabelIds, generic_names, label_name, same_labels, shorten, value_of
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError, shown
from deberta_jax.ops import losses
from deberta_jax.ops.losses import Items
from deberta_jax.tasks.base import Metrics, Task
from deberta_jax.tasks.chunks import chunk_metrics, chunks, is_chunk_tag
from deberta_jax.tasks.metrics import classification_metrics
from deberta_jax.tasks.text_classification import by_label, confusion, mean_loss, probabilities
from deberta_jax.text import Tokenizer

# Larger numbers in a column of tags are an error.
_MOST_TAGS = 10_000


@dataclasses.dataclass(frozen=True)
class WordTask(Task):
    """Predicts a tag for each word of sentences that are split into words.

    Attributes:
      text: the column of lists of words.
      label: the column of their tags, names or ids.
      names: the tags' names.
    """

    head: ClassVar[str] = "token-classification"
    text: str
    label: str
    names: tuple[str, ...]

    @property
    def spans(self) -> bool:
        """Tells whether tags mark spans (``B-PER``, ``I-PER``, ``O``), unlike parts of speech."""
        return all(map(is_chunk_tag, self.names)) and self.names != ("O",)

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("f1", "precision", "recall", "accuracy", "loss") if self.spans else ("accuracy", "f1", "loss")

    @property
    def sift(self) -> Literal["classes"]:
        return "classes"

    def with_labels_of(self, config: DebertaConfig) -> "Task":
        return dataclasses.replace(self, names=config.id2label) if same_labels(config.id2label, self.names) else self

    def configure(self, config: DebertaConfig) -> DebertaConfig:
        return dataclasses.replace(config, id2label=self.names, problem_type=None)

    def describe(self) -> str:
        kind = "spans" if self.spans else "tags"
        return f"labels ({kind}): {', '.join(f'{i} = {name}' for i, name in enumerate(self.names))}"

    def features(self, table: Table, tokenizer: Tokenizer, max_length: int, *, labelled: bool) -> Features:
        tags = encode_tags(table, self.text, self.label, self.names) if labelled else None
        return word_features(tokenizer, table.word_lists(self.text), tags, max_length=max_length)

    def loss(self, out: Any, batch: Mapping[str, jax.Array]) -> Items:
        return losses.cross_entropy(out.logits, batch["labels"])

    def metrics(self, logits: np.ndarray, features: Features, table: Table) -> Metrics:
        assert features.labels is not None
        there = features.labels >= 0
        logits, labels = logits[there], features.labels[there]
        loss = {"loss": float(mean_loss(logits, labels))}
        flat = classification_metrics(logits, labels)
        if not self.spans:
            return {"accuracy": flat["accuracy"], "f1": flat["f1"]} | loss
        owner = owners(features)[there]
        truth = by_sentence(labels, owner, len(table), self.names)
        guess = by_sentence(logits.argmax(-1), owner, len(table), self.names)
        return chunk_metrics(truth, guess) | {"accuracy": flat["accuracy"]} | loss

    def answers(self, logits: np.ndarray, features: Features, table: Table) -> list[dict[str, Any]]:
        assert features.words is not None
        begins = features.words >= 0
        logits, owner = logits[begins], owners(features)[begins]
        tags = by_sentence(logits.argmax(-1), owner, len(table), self.names)
        certainty = probabilities(logits).max(-1)
        scores = [
            part.tolist() for part in np.split(certainty, np.cumsum(np.bincount(owner, minlength=len(table)))[:-1])
        ]
        words = table.word_lists(self.text)
        return [word_answer(words[row], tags[row], scores[row], spans=self.spans) for row in range(len(table))]

    def details(self, logits: np.ndarray, features: Features, table: Table) -> dict[str, Any]:
        assert features.labels is not None
        there = features.labels >= 0
        guess, truth = logits[there].argmax(-1), features.labels[there]
        classes = np.arange(len(self.names))
        return confusion(guess, truth, self.names) | {
            "by_label": by_label(guess[:, None] == classes, truth[:, None] == classes, self.names)
        }


def word_answer(words: Sequence[str], tags: Sequence[str], scores: Sequence[float], *, spans: bool) -> dict[str, Any]:
    """Returns the tags of a sentence and their probabilities and, if tags mark spans, the spans with their words."""
    answer: dict[str, Any] = {"tags": list(tags), "scores": list(scores)}
    if spans:
        answer["spans"] = [
            {"label": kind, "start": first, "end": last + 1, "text": " ".join(words[first : last + 1])}
            for kind, first, last in chunks(tags)
        ]
    return answer


def discover_tags(table: Table, text: str, label: str) -> tuple[str, ...]:
    """Returns all tags of a column: in the file's order if the file names them, else as ``sorted_tags`` orders them.

    Raises:
      InputError: a row has more words than tags or fewer, or some tags are names and others numbers.
    """
    values = {tag for tags in _tag_lists(table, text, label) for tag in tags}
    if label in table.class_names:
        return tuple(label_name(name) or name for name in table.class_names[label])
    numbers, names = {v for v in values if isinstance(v, int)}, {v for v in values if isinstance(v, str)}
    if numbers and names:
        raise InputError(
            f"{table.name}: tags in {label!r} are names, as {shown(min(names))}, and numbers, as {min(numbers)}"
        )
    if numbers and max(numbers) >= _MOST_TAGS:
        raise InputError(f"{table.name}: {label!r} has the tag {max(numbers)}; tags are numbered from 0")
    if numbers:
        return generic_names(max(numbers) + 1)
    return sorted_tags({label_name(name) or name for name in names})


def sorted_tags(names: Iterable[str]) -> tuple[str, ...]:
    """Returns tags in order: ``O`` first, then by type, and B before I for each type."""
    kind = lambda tag: (tag != "O", tag.partition("-")[2] if is_chunk_tag(tag) else tag, tag)
    return tuple(sorted(names, key=kind))


def encode_tags(table: Table, text: str, label: str, names: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each row's tags.

    Tags that are numbers are ids of the model, which is logged. If the file has names for its numbers, the names are
    looked up instead, unless the model's labels have no names.

    Raises:
      InputError: a tag is not among the names.
    """
    ids, out = LabelIds(names), []
    numbers = label in table.class_names and tuple(names) == generic_names(len(names))
    for row, tags in enumerate(_tag_lists(table, text, label)):
        raw = table.column(label)[row] if numbers else tags
        row_ids: list[Any] = [
            ids.find(number) if isinstance(number, str) else ids.by_number(tag, number)
            for tag, number in zip(tags, raw, strict=True)
        ]
        if None in row_ids:
            raise InputError(
                f"{table.where(row)}: unknown tag {shown(tags[row_ids.index(None)])} in {label!r}; "
                f"known tags: {shorten(tuple(names), 20)}"
            )
        out.append(row_ids)
    ids.log_renamed(table.name)
    return out


def untagged_rows(table: Table, label: str) -> list[int]:
    """Returns the indices of the rows without tags, or with a word without a tag."""
    tags = (value_of(table, label, row) for row in range(len(table)))
    return [row for row, value in enumerate(tags) if not isinstance(value, list) or any(map(_is_missing, value))]


def _is_missing(tag: Any) -> bool:
    return tag is None or tag == "" or (isinstance(tag, float) and math.isnan(tag))


def _tag_lists(table: Table, text: str, label: str) -> Iterator[list[str | int]]:
    """Yields each row's tags. Raises InputError for a row without exactly one tag for each word."""
    for row, ws in enumerate(table.word_lists(text)):
        ts = value_of(table, label, row)
        if not isinstance(ts, list) or len(ts) != len(ws):
            given = len(ts) if isinstance(ts, list) else shown(ts)
            raise InputError(f"{table.where(row)}: {len(ws)} words in {text!r} but {label!r} is {given}; a tag a word")
        yield [_tag(table, label, row, tag) for tag in ts]


def _tag(table: Table, label: str, row: int, tag: Any) -> str | int:
    if _is_missing(tag):
        raise InputError(f"{table.where(row)}: {label!r} has {shown(tag)}; each word needs a tag: {SKIP}")
    if isinstance(tag, float) and tag.is_integer():
        tag = int(tag)
    if not isinstance(tag, str) and (type(tag) is not int or tag < 0):
        raise InputError(f"{table.where(row)}: {label!r} has {shown(tag)}; a tag is a name, or a number from 0")
    return tag


def owners(features: Features) -> np.ndarray:
    """Returns the index of the table's row that each token belongs to, [N]."""
    assert features.row is not None
    return np.repeat(features.row, features.lengths)


def by_sentence(ids: np.ndarray, owner: np.ndarray, count: int, names: Sequence[str]) -> list[list[str]]:
    """Returns the names of tags in a list for each of ``count`` rows.

    Args:
      ids: the tags' ids [n].
      owner: the row of each tag [n], ascending.
    """
    cuts = np.cumsum(np.bincount(owner, minlength=count))[:-1]
    return [[names[int(i)] for i in part] for part in np.split(ids, cuts)]
