"""Defines the kinds of task: their columns, labels, features, loss, metrics and answers. ``TASK_KINDS`` lists them."""

from deberta_jax.tasks.base import (
    Metrics,
    NamedTask,
    PipelineInputs,
    Task,
    TaskKind,
    TaskOptions,
)
from deberta_jax.tasks.columns import Columns
from deberta_jax.tasks.entity_recognition import EntityTask
from deberta_jax.tasks.finite import NonFinite, check_finite_rows, finite_answers
from deberta_jax.tasks.multiple_choice import ChoiceTask
from deberta_jax.tasks.named import NAMED_TASKS, find_file, read_task
from deberta_jax.tasks.option_checks import check_options
from deberta_jax.tasks.question_answering import SpanTask
from deberta_jax.tasks.registry import TASK_KINDS, guess_kind, kind_of_model
from deberta_jax.tasks.resolve import (
    kind_name,
    kind_of,
    resolve_options,
    resolve_task,
    task_of_model,
    without_unlabelled,
)
from deberta_jax.tasks.text_classification import TextTask, problem_of
from deberta_jax.tasks.token_classification import WordTask

__all__ = [
    "TASK_KINDS",
    "Columns",
    "Metrics",
    "NamedTask",
    "PipelineInputs",
    "Task",
    "TaskKind",
    "TaskOptions",
]
