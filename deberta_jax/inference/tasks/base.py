"""What a task is: from a table's rows to tokens, from a model's output to a loss, metrics and answers."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.data.features import Features
from deberta_jax.data.table import Table
from deberta_jax.ops.losses import Items
from deberta_jax.text import Tokenizer

Metrics = Mapping[str, float | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What a user may say about a task; what is not said is guessed from the columns, and told."""

    task: str = ""
    """text-classification, regression, multi-label, token-classification, question-answering or multiple-choice; or a
    named task such as mnli, squad or conll2003, which knows its columns, labels and metric."""
    text: tuple[str, ...] = ()
    """Column of the text, or two of a pair; of the words; of question and context; of what stands before a choice."""
    label: str = ""
    """Column of the label: classes, numbers, lists of names, tags of words, answers, or the right choice."""
    labels: tuple[str, ...] = ()
    """Columns of 0 and 1, one a label, where a text may have several."""
    choices: tuple[str, ...] = ()
    """Columns of the choices, or one column of lists."""
    doc_stride: int = 128
    """Tokens by which the windows of a long context overlap."""
    max_answer_length: int = 30
    """Tokens of the longest extracted answer."""
    n_best: int = 20
    """Answers that are kept of each question."""
    null_threshold: float = 0.0
    """"No answer" is given where its score exceeds the best answer's by more."""
    delimiter: str = ""
    """Character between the fields of csv and tsv files, or the word tab; found if not given."""
    skip_unlabelled: bool = False
    """Leave out rows without a usable label (missing, or an answer that is not in its context) instead of refusing the
    file; the log says how many."""


@runtime_checkable
class Task(Protocol):
    """A task kind with its columns and labels settled; implementations are frozen dataclasses.

    Attributes:
      head: of the model. per_token: what ``read`` gives is per token rather than per text.
      metric: the one that chooses the best checkpoint. metric_names: all that can.
    """

    @property
    def head(self) -> str: ...
    @property
    def per_token(self) -> bool: ...
    @property
    def metric(self) -> str: ...
    @property
    def metric_names(self) -> tuple[str, ...]: ...

    def configure(self, config: DebertaConfig) -> DebertaConfig:
        """The model's config with this task's labels."""
        ...

    def describe(self) -> str:
        """The labels in a line, for the log."""
        ...

    def features(self, table: Table, tokenizer: Tokenizer, max_length: int, *, labelled: bool) -> Features:
        """Tokens of all rows; raises InputError naming the line of a row that cannot be used."""
        ...

    def loss(self, out: Any, batch: Mapping[str, jax.Array]) -> Items:
        """Loss and weight of every item from the model's output, for padded batches and packed ones."""
        ...

    def read(self, out: Any) -> jax.Array:
        """The part of the model's output that answers are made of: [B, K], or [B, T, K] where ``per_token``."""
        ...

    def metrics(self, found: np.ndarray, features: Features, table: Table) -> Metrics:
        """``loss`` and the metrics, from what ``read`` gave for all texts [n, K] or tokens [N, K]."""
        ...

    def answers(self, found: np.ndarray, features: Features, table: Table) -> list[dict[str, Any]]:
        """An object for each row of the table, in its order."""
        ...

    def details(self, found: np.ndarray, features: Features, table: Table) -> dict[str, Any]:
        """What a report shows beyond the metrics, as JSON: see ``training.report``."""
        ...
