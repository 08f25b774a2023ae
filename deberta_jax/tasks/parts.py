"""Reads files of any length for a task, in parts."""

import itertools
from collections.abc import Callable, Iterator

from deberta_jax.data.files import ending, matching_files
from deberta_jax.data.layouts import arrange, may_join_rows
from deberta_jax.data.streaming import Part, divided, read_parts
from deberta_jax.data.table import Table, join_tables
from deberta_jax.data.tables import Reading
from deberta_jax.tasks.named import NAMED_TASKS, as_named, has_word_lists, read_task


def task_parts(task: str, pattern: str, delimiter: str = "", *, rows: int = 2048) -> Iterator[Part]:
    """Yields the rows of files as ``read_task`` reads them, in parts that depend on the files and on ``rows`` alone.

    Where rows of the files are joined or divided to make rows of the task, the files are read whole.

    Args:
      task: a named task, a kind of task, or "" if the kind is to be guessed.
      pattern: a file or pattern.
      delimiter: character between the fields of csv and tsv files; "" detects it.
      rows: the largest number of rows of a part.

    Raises:
      InputError: as ``read_task``; for a row that cannot be used when the table of its part is made.
    """
    named = NAMED_TASKS.get(task)
    if named is not None:
        endings = {ending(path) for path in matching_files(pattern)} if pattern != "-" else set()
        if named.convert is not None or endings & named.readers.keys():
            yield from divided(read_task(task, [pattern], delimiter), rows)
            return
        convert: Callable[[Table], Table] = lambda table: as_named(task, table)
    else:
        convert = lambda table: arrange(table, words=False)
    words = has_word_lists(task)
    parts = read_parts(pattern, Reading(delimiter, words=words), rows=rows)
    first = next(parts, None)
    if first is None:
        return
    table = first.table()
    if named is None and (words or not task) and may_join_rows(table):
        # The words of a sentence may stand in two parts.
        whole = join_tables([table, *(part.table() for part in parts)])
        yield from divided(arrange(whole, words=True), rows)
        return
    for part in itertools.chain([Part(first.rows, lambda: table)], parts):
        yield Part(part.rows, lambda part=part: convert(part.table()))
