"""Resolves the parts of a task that the user does not give: its kind, its columns and its labels."""

import dataclasses
import logging
from collections.abc import Collection
from typing import Any, TypeVar

import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError
from deberta_jax.tasks.base import Task, TaskKind, TaskOptions
from deberta_jax.tasks.named import NAMED_TASKS
from deberta_jax.tasks.registry import MULTI_LABEL_NAME, TASK_KINDS, guess_kind

_log = logging.getLogger(__name__)
Options = TypeVar("Options", bound=TaskOptions)


def kind_name(task: str) -> str:
    """Returns the key of ``TASK_KINDS`` for a kind of task or a named task.

    Raises:
      InputError: the task does not exist.
    """
    name = NAMED_TASKS[task].kind if task in NAMED_TASKS else task
    if name not in TASK_KINDS:
        raise InputError(
            f"--task {task}: is no task; there are {', '.join(TASK_KINDS)}, and by name {', '.join(NAMED_TASKS)}; "
            "import a kind of your own with --plugin"
        )
    return name


def kind_of(options: TaskOptions) -> TaskKind:
    """Returns the kind of the task that the options name. Raises InputError as ``kind_name``."""
    return TASK_KINDS[kind_name(options.task)]


def resolve_options(options: Options, table: Table, *, labelled: bool = True) -> Options:
    """Returns the options with task and columns: those given, those of a named task, or guesses, which are logged.

    Args:
      labelled: the table has labels, and their column is needed.

    Raises:
      InputError: the task does not exist, or columns cannot be guessed.
    """
    o = options
    if len(o.text) > 2:
        raise InputError(f"--text: give one column, or two for a pair, not {len(o.text)}")
    if o.task in NAMED_TASKS:
        named = NAMED_TASKS[o.task]
        return dataclasses.replace(
            o, text=o.text or named.text, label=o.label or named.label, choices=o.choices or named.choices
        )
    name = kind_name(o.task or (MULTI_LABEL_NAME if o.labels else guess_kind(table)))
    columns = TASK_KINDS[name].columns(table, o, labelled)
    if o.labels:
        several = TASK_KINDS[name].with_labels
        if several is None:
            raise InputError(f"--labels: goes with --task {MULTI_LABEL_NAME}, not with {o.task}")
        name, columns = several, dataclasses.replace(columns, label="")
    fields: dict[str, Any] = {"task": name} | dataclasses.asdict(columns)
    guessed = [f"--{key} {_shown(value)}" for key, value in fields.items() if value and not getattr(o, key)]
    if guessed:
        _log.info("%s: guessed %s", table.name, "  ".join(guessed))
    return dataclasses.replace(o, **fields)


def resolve_task(options: TaskOptions, table: Table) -> Task:
    """Returns the task of resolved options. Labels are those of the named task, or those in the table to train on.

    Raises:
      InputError: a column is missing or has other contents than the task needs.
    """
    return kind_of(options).task(options, table, NAMED_TASKS.get(options.task))


def task_of_model(options: TaskOptions, config: DebertaConfig, table: Table) -> Task:
    """Returns the task of resolved options for a trained model and a table to answer. The config has the labels."""
    return kind_of(options).task_of_model(options, config, table, NAMED_TASKS.get(options.task))


def without_unlabelled(options: TaskOptions, table: Table, known: Collection[str] = ()) -> Table:
    """Returns the table without the rows that have no usable label, if ``skip_unlabelled`` is set.

    Args:
      options: options with task and columns resolved.
      known: names of labels, which are usable even if they look like a missing value.

    Raises:
      InputError: no row has a usable label.
    """
    if not options.skip_unlabelled:
        return table
    usable = np.ones(len(table), bool)
    usable[kind_of(options).unlabelled(options, table, known)] = False
    if usable.all():
        return table
    if not usable.any():
        raise InputError(f"{table.name}: no row has a usable label")
    missing = len(table) - int(usable.sum())
    _log.warning("%s: %d of %d rows have no usable label and are left out", table.name, missing, len(table))
    return table.select(np.flatnonzero(usable))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else " ".join(value)
