"""Finds the columns of a table that a task needs, if the user does not name them."""

import dataclasses

from deberta_jax.data.labels import number_of
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError

_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text", "text_pair"),
    ("text1", "text2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
)
_TEXTS = ("text", "sentence", "content", "review", "document", "body", "comment", "tweet", "title", "question")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Holds the names of a task's columns, as in ``TaskOptions``."""

    text: tuple[str, ...]
    label: str
    choices: tuple[str, ...] = ()


def guess_text(table: Table, label: str) -> tuple[str, ...]:
    """Returns the column of the texts, or the two of a pair: columns with known names, or the only column of texts.

    Raises:
      InputError: no column, or several, can be the texts; the message lists the columns.
    """
    for names in (*_PAIRS, *((name,) for name in _TEXTS)):
        if all(name in table.columns and name != label for name in names):
            return names
    texts = [n for n, values in table.columns.items() if n != label and all(isinstance(v, str) for v in values)]
    # A column of numbers, such as the numbers of the rows, is not one of texts.
    texts = [n for n in texts if any(number_of(value) is None for value in table.columns[n])]
    if len(texts) == 1:
        return (texts[0],)
    raise unknown_column(table, "the text", "--text")


def first_columns(table: Table, alternatives: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """Returns the first of these groups of columns that the table has completely. Raises InputError if it has none."""
    for names in alternatives:
        if all(name in table.columns for name in names):
            return names
    raise unknown_column(table, "the text", "--text")


def label_column(table: Table, names: tuple[str, ...]) -> str:
    """Returns the first of these columns that the table has. Raises InputError if it has none."""
    for name in names:
        if name in table.columns:
            return name
    raise unknown_column(table, "the label", "--label")


def unknown_column(table: Table, what: str, option: str) -> InputError:
    """Returns the error for a column that cannot be guessed; it lists the columns and the option to use."""
    question = f"which columns are {what}?" if what.endswith("s") else f"which column is {what}?"
    return InputError(f"{table.name}: {question} Give {option}; its columns are {', '.join(map(repr, table.columns))}")
