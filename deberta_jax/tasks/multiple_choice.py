"""Defines multiple choice: the model scores each choice as one text, and the highest score is the answer."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.data.features import Features, choice_features
from deberta_jax.data.labels import number_of, unlabelled_rows
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError, shown
from deberta_jax.ops import losses
from deberta_jax.ops.losses import Items
from deberta_jax.tasks.base import Metrics, NamedTask, PipelineInputs, Task, TaskKind, TaskOptions, read_mappings
from deberta_jax.tasks.columns import Columns, first_columns, label_column, unknown_column
from deberta_jax.tasks.squad import answer_scores
from deberta_jax.tasks.text_classification import confusion, mean_loss, probabilities
from deberta_jax.text import Tokenizer

# The logit of a choice that an example does not have: lower than any other, and finite, so that softmax is defined.
_ABSENT = -1e30

# Names of the columns before the choices; pairs come first.
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
    """Selects one of the choices of each row.

    The model reads pairs. The first text is that of the first column (or an element of its list, one for each choice);
    the second text is that of the second column, if there is one, followed by the choice.

    Attributes:
      text: one or two columns of the texts before the choice.
      choices: the columns of the choices, or one column of lists.
      label: the column of the right choice: its number, counted from ``first``, or a letter, from A.
      first: the number of the first choice, 0 or 1.
      gold: a column with the texts of all right answers; ``exact_match`` and ``f1`` compare the chosen element of
        ``entities`` with them, as in ReCoRD.
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
            # Packed: the choices of an example are consecutive texts of a row.
            labels = batch["labels"]
            shape = (*labels.shape, -1)
            present, logits = (batch["positions"] >= 0).reshape(shape), out.logits.reshape(shape)
        else:
            present, logits, labels = batch["attention_mask"].any(axis=-1), out.logits, batch["labels"]
        return losses.cross_entropy(jnp.where(present, logits, _ABSENT), labels)

    def _logits_by_choice(self, logits: np.ndarray, features: Features) -> np.ndarray:
        """Returns logits [n, choices]; those of choices that an example does not have are lower than any other."""
        shape = (len(features), features.choices)
        return np.where(features.lengths.reshape(shape) > 0, logits.reshape(shape), _ABSENT)

    def metrics(self, logits: np.ndarray, features: Features, table: Table) -> Metrics:
        assert features.labels is not None
        scores = self._logits_by_choice(logits, features)
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
        for scores, choices in zip(
            self._logits_by_choice(logits, features), choice_lists(table, self.choices), strict=True
        ):
            by_choice = probabilities(scores[: len(choices)]).tolist()
            best = int(scores.argmax())
            rows.append({"choice": best + self.first, "text": choices[best], "probabilities": by_choice})
        return rows

    def details(self, logits: np.ndarray, features: Features, table: Table) -> dict[str, Any]:
        assert features.labels is not None
        names = [str(i + self.first) for i in range(features.choices)]
        return confusion(self._logits_by_choice(logits, features).argmax(-1), features.labels, names)


def choice_lists(table: Table, columns: tuple[str, ...]) -> Sequence[list[str]]:
    """Returns the choices of each row. Raises InputError for a row with fewer than two."""
    if len(columns) == 1:
        rows = table.word_lists(columns[0])
    else:
        rows = [list(row) for row in zip(*(table.texts(column) for column in columns), strict=True)]
    for row, choices in enumerate(rows):
        if len(choices) < 2:
            raise InputError(f"{table.where(row)}: {len(choices)} choice in {columns[0]!r}; there must be two or more")
    return rows


def _choice_columns(table: Table) -> tuple[str, ...]:
    """Returns the column of lists of choices, or the numbered columns of choices; () if there are none."""
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
    numbers = map(number_of, table.column(options.label))
    # Choices are numbered from 1 if no row has the number 0.
    first = int(all(number is not None and number > 0 for number in numbers))
    return ChoiceTask(options.text, options.choices, options.label, first, named.gold if named else "")


def _task_of_model(options: TaskOptions, config: DebertaConfig, table: Table, named: NamedTask | None) -> ChoiceTask:
    return ChoiceTask(options.text, options.choices, options.label, 0, named.gold if named else "")


def _unlabelled(options: TaskOptions, table: Table, known: Collection[str]) -> list[int]:
    return unlabelled_rows(table, (options.label,))


def _pipeline_inputs(items: Sequence[Any], where: Callable[[int], str]) -> PipelineInputs:
    """Reads mappings of ``text`` and ``choices``. Raises InputError for anything else."""
    columns, form = Columns(("text",), "", ("choices",)), "{'text': ..., 'choices': [...]}"
    for i, item in enumerate(items):
        if isinstance(item, Mapping) and {"text", "choices"} == set(item):
            choices = item["choices"]
            listed = isinstance(choices, list) and len(choices) > 1 and all(isinstance(c, str) for c in choices)
            if not isinstance(item["text"], str) or not listed:
                raise InputError(f"{where(i)}: cannot read {shown(dict(item))}; give {form}, two or more texts")
    return read_mappings(items, where, columns, form)


MULTIPLE_CHOICE = TaskKind(
    head="multiple-choice",
    columns=_columns,
    task=_task_of_table,
    task_of_model=_task_of_model,
    unlabelled=_unlabelled,
    recognizes=_recognizes,
    pipeline_inputs=_pipeline_inputs,
)
