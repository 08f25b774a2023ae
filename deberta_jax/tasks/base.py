"""Defines what a kind of task is (``TaskKind``) and what a task with its columns and labels is (``Task``)."""

import abc
import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.data.features import Features
from deberta_jax.data.table import Table
from deberta_jax.ops.losses import Items
from deberta_jax.tasks.columns import Columns
from deberta_jax.text import Tokenizer

Metrics = Mapping[str, float | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What a user may say about a task. What is not said is guessed from the columns, and logged."""

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


@dataclasses.dataclass(frozen=True)
class NamedTask:
    """Describes a published task, such as MNLI or SQuAD: its columns, labels, metric and files.

    Attributes:
      kind: a key of ``TASK_KINDS``.
      text, label, choices: columns of the rows that ``convert`` gives, which may be several of each.
      names: labels in DeBERTa's order; () where none are needed.
      hub_names: what the numbers in the label column of the hub's copies mean; () where numbers are the labels.
      metric: chooses the best checkpoint.
      dev: stems of the file to evaluate on, the first that exists is taken; train: likewise.
      called: other names of a column in the published files.
      readers: read files with these endings, in a form that only this task has.
      convert: returns the rows of the task for one row of a published file.
      group: rows with the same value in this column are one question; all must be right (MultiRC).
      gold: column of all texts that are right (ReCoRD).
    """

    kind: str
    text: tuple[str, ...]
    label: str
    metric: str
    names: tuple[str, ...] = ()
    hub_names: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    called: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    readers: Mapping[str, Callable[[str, str], Table]] = dataclasses.field(default_factory=dict)
    convert: Callable[[Any], Any] | None = None
    train: tuple[str, ...] = ("train",)
    dev: tuple[str, ...] = ("dev", "validation", "val", "valid")
    group: str = ""
    gold: str = ""


class Task(abc.ABC):
    """A task with its columns and labels: turns rows into tokens, and outputs into a loss, metrics and answers.

    Subclasses are frozen dataclasses; their ``repr`` identifies the features that they make.

    Attributes:
      head: a key of ``models.HEADS``. What ``metrics`` and ``answers`` are given is what that head's ``read`` returns.
      metric: the metric that chooses the best checkpoint.
      metric_names: all metrics that can.
      sift: how SiFT compares outputs: of ``classes`` by divergence, of ``numbers`` by squares; None: not at all.
    """

    head: ClassVar[str]

    @property
    @abc.abstractmethod
    def metric_names(self) -> tuple[str, ...]: ...

    @property
    def metric(self) -> str:
        return self.metric_names[0]

    @property
    def sift(self) -> Literal["classes", "numbers"] | None:
        return None

    @abc.abstractmethod
    def configure(self, config: DebertaConfig) -> DebertaConfig:
        """Returns the model's config with this task's labels."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Returns the labels in one line, for the log."""

    def with_labels_of(self, config: DebertaConfig) -> "Task":
        """Returns the task with a model's labels where these are the task's in another order or case, so that the
        model's classifier is trained further. By default the task itself."""
        return self

    @abc.abstractmethod
    def features(self, table: Table, tokenizer: Tokenizer, max_length: int, *, labelled: bool) -> Features:
        """Returns the tokens of all rows, and their labels if ``labelled``.

        Raises:
          InputError: a row that cannot be used; the message names its line.
        """

    @abc.abstractmethod
    def loss(self, out: Any, batch: Mapping[str, jax.Array]) -> Items:
        """Returns the loss and the weight of every item from the model's output, for padded and packed batches."""

    @abc.abstractmethod
    def metrics(self, logits: np.ndarray, features: Features, table: Table) -> Metrics:
        """Returns ``loss`` and the metrics, from the logits of all texts [n, K] or tokens [N, K]."""

    @abc.abstractmethod
    def answers(self, logits: np.ndarray, features: Features, table: Table) -> list[dict[str, Any]]:
        """Returns what ``predict`` writes: an object for each row of the table, in its order."""

    def pipeline_answers(self, logits: np.ndarray, features: Features, table: Table) -> list[dict[str, Any]]:
        """Returns what ``deberta_jax.pipeline`` answers: an object for each row. By default that of ``answers``."""
        return self.answers(logits, features, table)

    def details(self, logits: np.ndarray, features: Features, table: Table) -> dict[str, Any]:
        """Returns what a report shows beside the metrics, as JSON: see ``training.report``. By default nothing."""
        return {}


class PipelineInputs(NamedTuple):
    """Holds the inputs of one call of a pipeline as a table, its columns, and whether the input was a single one."""

    table: Table
    columns: Columns
    single: bool


def _nothing(config: DebertaConfig) -> None:
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskKind:
    """Describes a kind of task to the whole package: an entry of ``TASK_KINDS``.

    Attributes:
      head: a key of ``models.HEADS``.
      columns: returns the columns of a table, those given and those guessed; takes the options and whether the table
        has labels. Raises InputError where nothing fits.
      task: returns the task for a table to train on; takes the options with columns resolved, and the named task that
        they name, if any.
      task_of_model: returns the task for a trained model; takes the options, the model's config, the table to answer,
        and the named task, if any.
      recognizes: tells whether a table is one of this kind, by its columns; None: no table is taken for one.
      unlabelled: returns the rows of a table that have no usable label; takes the options and the known labels.
      word_lists: texts in a file stand as lists of words (a word a line in ``.txt`` and ``.conll`` files).
      pipeline_inputs: returns the inputs of a call of ``deberta_jax.pipeline``, given its arguments; raises InputError
        for others. None: there is no pipeline of this name.
      check_config: raises InputError for a config that a trained model of this kind cannot have.
    """

    head: str
    columns: Callable[[Table, TaskOptions, bool], Columns]
    task: Callable[[TaskOptions, Table, NamedTask | None], Task]
    task_of_model: Callable[[TaskOptions, DebertaConfig, Table, NamedTask | None], Task]
    unlabelled: Callable[[TaskOptions, Table, Collection[str]], list[int]]
    recognizes: Callable[[Table], bool] | None = None
    word_lists: bool = False
    pipeline_inputs: Callable[..., PipelineInputs] | None = None
    check_config: Callable[[DebertaConfig], object] = _nothing
