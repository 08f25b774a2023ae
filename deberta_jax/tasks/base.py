"""Defines what a kind of task is (``TaskKind``) and what a task with its columns and labels is (``Task``)."""

import abc
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.data.features import Features
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError, shown
from deberta_jax.ops.losses import Items
from deberta_jax.tasks.columns import Columns
from deberta_jax.text import Tokenizer

Metrics = Mapping[str, float | None]
"""Maps the name of a metric to its value, or to None where it is not defined, as a correlation with a constant is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Holds the options that describe a task. Those not given are guessed from the columns of the data, and logged."""

    task: str = ""
    """Kind of task: text-classification, regression, multi-label, reranking, token-classification, question-answering,
    multiple-choice, or one that a --plugin adds; or a named task such as mnli, squad or conll2003, which defines
    columns, labels and metric."""
    text: tuple[str, ...] = ()
    """Column of the texts, or of the lists of words; or two columns: of a pair of texts, of question and context, or of
    the texts before a choice."""
    label: str = ""
    """Column of the labels: classes, numbers, lists of names, tags of words, answers, or the right choice."""
    labels: tuple[str, ...] = ()
    """Columns of 0 and 1, one for each label, if a text may have several labels."""
    choices: tuple[str, ...] = ()
    """Columns of the choices, or one column of lists."""
    doc_stride: int = 128
    """Number of tokens by which the windows of a long context overlap."""
    max_answer_length: int = 30
    """Largest number of tokens of an answer."""
    n_best: int = 20
    """Number of answers that are kept for each question."""
    null_threshold: float = 0.0
    """Margin by which the score of "no answer" must exceed that of the best answer to be chosen."""
    delimiter: str = ""
    """Character between the fields of csv and tsv files, or the word tab; detected if not given."""
    skip_unlabelled: bool = False
    """Skip rows without a usable label (missing, or an answer that is not in its context) instead of refusing the file;
    the log gives their number."""


@dataclasses.dataclass(frozen=True)
class NamedTask:
    """Describes a published task, such as MNLI or SQuAD: its columns, labels, metric and files.

    Attributes:
      kind: a key of ``TASK_KINDS``.
      text, label, choices: the columns of texts, labels and choices in the rows that ``convert`` returns.
      metric: the metric that selects the best checkpoint.
      names: the labels in the order of Microsoft's code; () if the task has none.
      hub_names: the labels that the numbers in the label column of the hub's copies stand for; () if the numbers are
        the labels.
      called: other names of a column in the published files.
      readers: functions that read files in a form that only this task has, by the ending of their names.
      convert: returns the rows of the task for one row of a published file.
      train, dev: names without ending of the files to train and to evaluate on; the first that exists is used.
      group: column of the question that a row belongs to; all rows of a question must be right (MultiRC).
      gold: column of all right texts (ReCoRD).
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
    """Defines a task with its columns and labels: tokens of rows, and loss, metrics and answers from a model's output.

    Subclasses are frozen dataclasses; their ``repr`` identifies the features that they make.

    Attributes:
      head: a key of ``models.HEADS``. ``metrics`` and ``answers`` take the logits that ``read`` of that head returns.
      metric: the metric that selects the best checkpoint.
      metric_names: the metrics that can be selected by.
      sift: how SiFT compares outputs: ``classes`` by divergence, ``numbers`` by squared difference; None if SiFT does
        not support the task.
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
        """Returns the task with a model's labels if they are the task's in another order or case.

        The model's classifier can then be trained further. By default returns the task itself.
        """
        return self

    @abc.abstractmethod
    def features(self, table: Table, tokenizer: Tokenizer, max_length: int, *, labelled: bool) -> Features:
        """Returns the tokens of all rows, and their labels if ``labelled``.

        Raises:
          InputError: a row cannot be used; the message names its line.
        """

    @abc.abstractmethod
    def loss(self, out: Any, batch: Mapping[str, jax.Array]) -> Items:
        """Returns the loss and the weight of every item of a padded or packed batch, from the model's output."""

    @abc.abstractmethod
    def metrics(self, logits: np.ndarray, features: Features, table: Table) -> Metrics:
        """Returns ``loss`` and the metrics of ``metric_names`` from the logits of all texts [n, K] or tokens [N, K]."""

    @abc.abstractmethod
    def answers(self, logits: np.ndarray, features: Features, table: Table) -> list[dict[str, Any]]:
        """Returns what ``predict`` writes: a dict for each row of the table, in order."""

    def pipeline_answers(self, logits: np.ndarray, features: Features, table: Table) -> list[dict[str, Any]]:
        """Returns what ``deberta_jax.pipeline`` answers: a dict for each row. By default as ``answers``."""
        return self.answers(logits, features, table)

    def mistakes(self, logits: np.ndarray, features: Features, table: Table) -> list[dict[str, Any]] | None:
        """Returns the rows whose answer is wrong, the most confident mistake first; None if that has no meaning.

        Each has ``where`` (file and line), the columns of texts, ``label``, ``answer`` and ``confidence``.
        """
        return None

    def details(self, logits: np.ndarray, features: Features, table: Table) -> dict[str, Any]:
        """Returns what a report shows in addition to metrics, as JSON; see ``training.report``. By default nothing."""
        return {}


class PipelineInputs(NamedTuple):
    """Holds the inputs of one call of a pipeline.

    Attributes:
      table: the inputs as rows.
      columns: the columns of the table.
    """

    table: Table
    columns: Columns


def _nothing(config: DebertaConfig) -> None:
    return None


def read_mappings(items: Sequence[Any], where: Callable[[int], str], columns: Columns, form: str) -> PipelineInputs:
    """Returns the inputs of a pipeline whose inputs are mappings.

    Args:
      items: the inputs.
      where: returns the name of an input for messages, given its number.
      columns: the keys that every input has, as the task's columns.
      form: what an input looks like, for the message.

    Raises:
      InputError: an input is not a mapping with exactly these keys.
    """
    names = (*columns.text, *columns.choices)
    for i, item in enumerate(items):
        if not isinstance(item, Mapping) or set(item) != set(names):
            raise InputError(f"{where(i)}: cannot read {shown(item)}; give {form}")
    table = Table("the input", {name: [item[name] for item in items] for name in names}, range(len(items)))
    return PipelineInputs(table, columns)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskKind:
    """Describes a kind of task to the whole package: an entry of ``TASK_KINDS``.

    Attributes:
      head: a key of ``models.HEADS``.
      columns: (table, options, labelled) -> the columns, given or guessed. Raises InputError if none fit.
      task: (options, table, named task or None) -> the task for a table to train on. The options have their columns.
      task_of_model: (options, config, table, named task or None) -> the task for a trained model and a table to answer.
      unlabelled: (options, table, known labels) -> the indices of the rows without a usable label.
      recognizes: tells whether a table is of this kind, by its columns; None if the kind is never guessed.
      with_labels: the kind that a task is where ``--labels`` names columns of 0 and 1; None: it has no such columns.
      word_lists: texts in files are lists of words: ``.txt`` and ``.conll`` files have one word on each line.
      pipeline_inputs: returns the table of the inputs of a call of ``deberta_jax.pipeline``, given a list of them and a
        function that returns the name of each for messages; raises InputError for inputs of another form. None if the
        kind has no pipeline, or one of its own in ``deberta_jax.inference``.
      check_config: raises InputError for a config that a trained model of this kind cannot have.
    """

    head: str
    columns: Callable[[Table, TaskOptions, bool], Columns]
    task: Callable[[TaskOptions, Table, NamedTask | None], Task]
    task_of_model: Callable[[TaskOptions, DebertaConfig, Table, NamedTask | None], Task]
    unlabelled: Callable[[TaskOptions, Table, Collection[str]], list[int]]
    recognizes: Callable[[Table], bool] | None = None
    with_labels: str | None = None
    word_lists: bool = False
    pipeline_inputs: Callable[..., PipelineInputs] | None = None
    check_config: Callable[[DebertaConfig], object] = _nothing
