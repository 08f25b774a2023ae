"""Defines multiple choice: each choice is a text of its own, and the one with the highest score is taken."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.data.features import Features, choice_features
from deberta_jax.data.labels import number_of, unlabelled_rows
from deberta_jax.data.table import Table, shown
from deberta_jax.errors import InputError
from deberta_jax.ops import losses
from deberta_jax.ops.losses import Items
from deberta_jax.tasks.base import Metrics, NamedTask, PipelineInputs, Task, TaskKind, TaskOptions
from deberta_jax.tasks.columns import Columns, first_columns, label_column, unknown_column
from deberta_jax.tasks.squad import answer_scores
from deberta_jax.tasks.text_classification import confusion, mean_loss, probabilities
from deberta_jax.text import Tokenizer

# The score of a choice that an example lacks: lower than any, and finite, so that the softmax stays defined.
_ABSENT = -1e30

# Columns before the choices, the pairs first.
_TEXTS = (
    ("sent1", "sent2"),
    ("premise", "question"),
    ("article", "question"),
    ("context", "question"),
    ("question",),
    ("premise",),
    ("context",),
    ("text",),
)


@dataclasses.dataclass(frozen=True)
class ChoiceTask(Task):
    """Chooses among the choices of each row.

    Attributes:
      text: columns before the choice. The first is the pair's first text (a list: one a choice), a second begins the
        pair's second text.
      choices: the columns of the choices, or one column of lists.
      label: the column of the right choice's number, from 0 (or a letter from A, or a number from ``first``).
      first: the number of the first choice, 0 or 1.
      gold: a column of all right answers' texts, chosen among ``entities``; ``exact_match`` and ``f1`` then compare
        these texts, as in ReCoRD.
    """

    head: ClassVar[str] = "multiple-choice"
    text: tuple[str, ...]
    choices: tuple[str, ...]
    label: str
    first: int = 0
    gold: str = ""

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("f1", "exact_match", "accuracy", "loss") if self.gold else ("accuracy", "loss")

    def configure(self, config: DebertaConfig) -> DebertaConfig:
        return dataclasses.replace(config, problem_type=None)

    def describe(self) -> str:
        return f"choices: {', '.join(self.choices)}"

    def features(self, table: Table, tokenizer: Tokenizer, max_length: int, *, labelled: bool) -> Features:
        choices = choice_lists(table, self.choices)
        labels = self._labels(table, [len(row) for row in choices]) if labelled else None
        firsts = table.column(self.text[0])
        if not any(isinstance(text, list) for text in firsts):
            firsts = [[text] * len(row) for text, row in zip(table.texts(self.text[0]), choices, strict=True)]
        begins = table.texts(self.text[1]) if len(self.text) > 1 else [""] * len(table)
        return choice_features(
            tokenizer,
            firsts,
            [[f"{begin} {choice}".strip() for choice in row] for begin, row in zip(begins, choices, strict=True)],
            max_length=max_length,
            labels=labels,
        )

    def _labels(self, table: Table, counts: list[int]) -> np.ndarray:
        out = np.zeros(len(table), np.int32)
        for row, value in enumerate(table.column(self.label)):
            text, number = str(value).strip(), number_of(value)
            if len(text) == 1 and "A" <= text <= "Z":
                number = ord(text) - ord("A")
            elif number is not None:
                number -= self.first
            if number is None or not 0 <= number < counts[row]:
                raise InputError(
                    f"{table.where(row)}: {self.label!r} is {shown(value)}; it must number one of {counts[row]} "
                    f"choices from {self.first}, or name it by a letter from A"
                )
            out[row] = number
        return out

    def loss(self, out: Any, batch: Mapping[str, jax.Array]) -> Items:
        if "positions" in batch:
            # Packed: the texts of an example stand side by side in a row's slots.
            labels = batch["labels"]
            shape = (*labels.shape, -1)
            there, scores = (batch["positions"] >= 0).reshape(shape), out.logits.reshape(shape)
        else:
            there, scores, labels = batch["attention_mask"].any(axis=-1), out.logits, batch["labels"]
        return losses.cross_entropy(jnp.where(there, scores, _ABSENT), labels)

    def _scores(self, logits: np.ndarray, features: Features) -> np.ndarray:
        """Returns scores [n, choices]; those of choices that an example lacks are lower than any."""
        shape = (len(features), features.choices)
        return np.where(features.lengths.reshape(shape) > 0, logits.reshape(shape), _ABSENT)

    def metrics(self, logits: np.ndarray, features: Features, table: Table) -> Metrics:
        assert features.labels is not None
        scores = self._scores(logits, features)
        best = scores.argmax(-1)
        out = {"accuracy": float((best == features.labels).mean()), "loss": float(mean_loss(scores, features.labels))}
        if self.gold:
            names = [row[i] for row, i in zip(table.column("entities"), best.tolist(), strict=True)]
            agreement = np.array(
                [answer_scores(name, gold) for name, gold in zip(names, table.column(self.gold), strict=True)]
            )
            out |= {"exact_match": float(agreement[:, 0].mean()), "f1": float(agreement[:, 1].mean())}
        return out

    def answers(self, logits: np.ndarray, features: Features, table: Table) -> list[dict[str, Any]]:
        rows = []
        for scores, choices in zip(self._scores(logits, features), choice_lists(table, self.choices), strict=True):
            by_choice = probabilities(scores[: len(choices)]).tolist()
            best = int(scores.argmax())
            rows.append({"choice": best + self.first, "text": choices[best], "probabilities": by_choice})
        return rows

    def details(self, logits: np.ndarray, features: Features, table: Table) -> dict[str, Any]:
        assert features.labels is not None
        names = [str(i + self.first) for i in range(features.choices)]
        return confusion(self._scores(logits, features).argmax(-1), features.labels, names)


def choice_lists(table: Table, columns: tuple[str, ...]) -> list[list[str]]:
    """Returns each row's choices, two or more. Raises InputError for anything else."""
    if len(columns) == 1:
        rows = table.word_lists(columns[0])
    else:
        rows = [list(row) for row in zip(*(table.texts(column) for column in columns), strict=True)]
    for row, choices in enumerate(rows):
        if len(choices) < 2:
            raise InputError(f"{table.where(row)}: {len(choices)} choice in {columns[0]!r}; there must be two or more")
    return rows


def _choice_columns(table: Table) -> tuple[str, ...]:
    """Returns the column of lists of choices, or the numbered columns of choices; () where there are none."""
    for names in (("choices",), ("options",), ("endings",)):
        values = table.columns.get(names[0])
        if values is not None and isinstance(values[0], list):
            return names
    for stem, first in (("ending", 0), ("choice", 1), ("choice", 0), ("option", 1), ("option", 0), ("solution", 1)):
        names = []
        while f"{stem}{first + len(names)}" in table.columns:
            names.append(f"{stem}{first + len(names)}")
        if len(names) > 1:
            return tuple(names)
    return ()


def _recognizes(table: Table) -> bool:
    return bool(_choice_columns(table))


def _columns(table: Table, options: TaskOptions, labelled: bool) -> Columns:
    choices = options.choices or _choice_columns(table)
    if not choices:
        raise unknown_column(table, "the choices", "--choices")
    label = options.label
    if labelled and not (label or options.labels):
        label = label_column(table, ("label", "answer", "answerKey"))
    return Columns(options.text or first_columns(table, _TEXTS), label, choices)


def _task_of_table(options: TaskOptions, table: Table, named: NamedTask | None) -> ChoiceTask:
    numbers = [number_of(value) for value in table.column(options.label)]
    # Choices are numbered from 1 where no row says 0.
    first = int(all(number is not None and number > 0 for number in numbers))
    return ChoiceTask(options.text, options.choices, options.label, first, named.gold if named else "")


def _task_of_model(options: TaskOptions, config: DebertaConfig, table: Table, named: NamedTask | None) -> ChoiceTask:
    return ChoiceTask(options.text, options.choices, options.label, 0, named.gold if named else "")


def _unlabelled(options: TaskOptions, table: Table, known: Collection[str]) -> list[int]:
    return unlabelled_rows(table, (options.label,))


def _pipeline_inputs(inputs: Any) -> PipelineInputs:
    """Reads a mapping of ``text`` and ``choices``, or a list of those. Raises InputError for anything else."""
    single = isinstance(inputs, Mapping)
    items = [inputs] if single or not isinstance(inputs, Iterable) else list(inputs)
    for item in items:
        if not isinstance(item, Mapping) or set(item) != {"text", "choices"}:
            raise InputError(f"cannot read the input {item!r}; give {{'text': ..., 'choices': [...]}}")
    columns = {name: [item[name] for item in items] for name in ("text", "choices")}
    table = Table("the input", columns, range(1, len(items) + 1))
    return PipelineInputs(table, Columns(("text",), "", ("choices",)), single)


MULTIPLE_CHOICE = TaskKind(
    head="multiple-choice",
    columns=_columns,
    task=_task_of_table,
    task_of_model=_task_of_model,
    unlabelled=_unlabelled,
    recognizes=_recognizes,
    pipeline_inputs=_pipeline_inputs,
)
