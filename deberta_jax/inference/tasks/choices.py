"""Multiple choice: each choice is a text of its own, and the one with the highest score is taken."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.data.features import Features, choice_features
from deberta_jax.data.labels import number_of
from deberta_jax.data.table import Table, shown
from deberta_jax.errors import InputError
from deberta_jax.inference.squad import answer_scores
from deberta_jax.inference.tasks.base import Metrics
from deberta_jax.inference.tasks.text import confusion, mean_loss, probabilities
from deberta_jax.ops import losses
from deberta_jax.ops.losses import Items
from deberta_jax.text import Tokenizer

NOTHING = -1e30


@dataclasses.dataclass(frozen=True)
class ChoiceTask:
    """``text``: columns before the choice. The first is the pair's first text (a list: one a choice), a second begins
    the pair's second.

    ``choices``: their columns, or one column of lists. ``label``: the number of the right one, from 0 (a letter from A,
    or a number from 1 with ``first`` 1). ``gold``: a column of all right answers' texts, chosen among ``entities``;
    then ``exact_match`` and ``f1`` are of those texts, as in ReCoRD.
    """

    text: tuple[str, ...]
    choices: tuple[str, ...]
    label: str
    first: int = 0
    gold: str = ""
    head: str = "multiple-choice"
    per_token: bool = False

    @property
    def metric(self) -> str:
        return "f1" if self.gold else "accuracy"

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
        return losses.cross_entropy(jnp.where(there, scores, NOTHING), labels)

    def read(self, out: Any) -> jax.Array:
        return out.logits

    def _scores(self, found: np.ndarray, features: Features) -> np.ndarray:
        """Scores [n, choices]; those of choices that an example lacks are lower than any."""
        shape = (len(features), features.choices)
        return np.where(features.lengths.reshape(shape) > 0, found.reshape(shape), NOTHING)

    def metrics(self, found: np.ndarray, features: Features, table: Table) -> Metrics:
        assert features.labels is not None
        scores = self._scores(found, features)
        best = scores.argmax(-1)
        out = {"accuracy": float((best == features.labels).mean()), "loss": float(mean_loss(scores, features.labels))}
        if self.gold:
            names = [row[i] for row, i in zip(table.column("entities"), best.tolist(), strict=True)]
            found = np.array(
                [answer_scores(name, gold) for name, gold in zip(names, table.column(self.gold), strict=True)]
            )
            out |= {"exact_match": float(found[:, 0].mean()), "f1": float(found[:, 1].mean())}
        return out

    def answers(self, found: np.ndarray, features: Features, table: Table) -> list[dict[str, Any]]:
        rows = []
        for scores, choices in zip(self._scores(found, features), choice_lists(table, self.choices), strict=True):
            shares = probabilities(scores[: len(choices)]).tolist()
            best = int(scores.argmax())
            rows.append({"choice": best + self.first, "text": choices[best], "probabilities": shares})
        return rows

    def details(self, found: np.ndarray, features: Features, table: Table) -> dict[str, Any]:
        assert features.labels is not None
        names = [str(i + self.first) for i in range(features.choices)]
        return confusion(self._scores(found, features).argmax(-1), features.labels, names)


def choice_lists(table: Table, columns: tuple[str, ...]) -> list[list[str]]:
    """Each row's choices, two or more. Raises InputError for anything else."""
    if len(columns) == 1:
        rows = table.word_lists(columns[0])
    else:
        rows = [list(row) for row in zip(*(table.texts(column) for column in columns), strict=True)]
    for row, choices in enumerate(rows):
        if len(choices) < 2:
            raise InputError(f"{table.where(row)}: {len(choices)} choice in {columns[0]!r}; there must be two or more")
    return rows
