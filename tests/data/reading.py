"""What tests of data files share: a file written, its table, and what is made of it without a model."""

from pathlib import Path

from deberta_jax.data.table import Table
from deberta_jax.tasks import Task, TaskOptions, resolve_options, resolve_task, without_unlabelled
from deberta_jax.tasks.named import read_task


def written(directory: Path, name: str, content: str | bytes) -> str:
    path = directory / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(directory: Path, name: str, content: str | bytes, task: str = "", delimiter: str = "") -> Table:
    return read_task(task, [written(directory, name, content)], delimiter)


def recognised(table: Table, **options) -> tuple[TaskOptions, Task]:
    """Task and columns as they are guessed, and the task."""
    resolved = resolve_options(TaskOptions(**options), table)
    return resolved, resolve_task(resolved, without_unlabelled(resolved, table))
