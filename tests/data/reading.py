"""What tests of data files share: a file written, its table, and what is made of it without a model."""

import dataclasses
from pathlib import Path

from deberta_jax.data.table import Table
from deberta_jax.data.tasks import read_task
from deberta_jax.inference.tasks import Task, TaskOptions, kind_of, settle_options, settle_task, without_unlabelled


def written(directory: Path, name: str, content: str | bytes) -> str:
    path = directory / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(directory: Path, name: str, content: str | bytes, task: str = "", delimiter: str = "") -> Table:
    return read_task(task, [written(directory, name, content)], delimiter)


def recognised(table: Table, **options) -> tuple[TaskOptions, Task]:
    """Task and columns as they are guessed, and the task."""
    given = TaskOptions(**options)
    resolved = dataclasses.replace(given, **settle_options(given, table))
    return resolved, settle_task(resolved, without_unlabelled(resolved, kind_of(resolved.task), table))
