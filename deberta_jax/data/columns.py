"""What a table is about, where the user does not say: its task and the columns of it. Every guess is logged."""

import dataclasses

from deberta_jax.data.labels import number_of
from deberta_jax.data.layouts import TAG_COLUMNS, WORD_COLUMNS, named_column
from deberta_jax.data.spans import is_span_column
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError

CLASSIFICATION, REGRESSION_TASK, MULTI = "text-classification", "regression", "multi-label"
WORDS, SPANS, CHOICES = "token-classification", "question-answering", "multiple-choice"
KINDS = (CLASSIFICATION, REGRESSION_TASK, MULTI, WORDS, SPANS, CHOICES)

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
_LABELS = ("label", "labels", "target", "class", "category", "score", "gold_label", "sentiment", "y")
_SPANS = ("spans", "entities", "label", "labels", "annotations", "ner")


@dataclasses.dataclass(frozen=True)
class Columns:
    """A kind of task and its columns: as in ``TaskOptions``."""

    kind: str
    text: tuple[str, ...]
    label: str
    choices: tuple[str, ...] = ()


def guess_kind(table: Table) -> str:
    """From the names of the columns and the first row's values."""
    names = table.columns
    if {"question", "context"} <= set(names) and answers_column(table):
        return SPANS
    if _choice_columns(table):
        return CHOICES
    if words_column(table) and tags_column(table):
        return WORDS
    if spans_column(table):
        return WORDS
    return CLASSIFICATION


def answers_column(table: Table) -> str | None:
    """Returns the column of the answers to questions."""
    if "answers" in table.columns:
        return "answers"
    return "answer" if {"answer", "answer_start"} <= set(table.columns) else None


def words_column(table: Table) -> str | None:
    """Returns the column of lists of words."""
    name = named_column(table, WORD_COLUMNS)
    first = table.columns[name][0] if name else None
    return name if isinstance(first, list) and all(isinstance(word, str) for word in first) else None


def tags_column(table: Table) -> str | None:
    """Returns the column of lists of tags."""
    return named_column(table, TAG_COLUMNS)


def spans_column(table: Table) -> str | None:
    """Returns the column of named spans of characters."""
    names = [*(name for name in _SPANS if name in table.columns), *table.columns]
    return next((name for name in names if is_span_column(table.columns[name])), None)


def guess_columns(
    table: Table, kind: str, text: tuple[str, ...], label: str, choices: tuple[str, ...], *, labelled: bool
) -> Columns:
    """What is not given is guessed.

    Raises:
      InputError: nothing fits; the message has the columns that there are.
    """
    if kind == SPANS:
        return Columns(kind, text or ("question", "context"), label or answers_column(table) or "answers")
    if kind == WORDS:
        return _word_columns(table, text, label, labelled=labelled)
    if kind == CHOICES:
        choices = choices or _choice_columns(table)
        if not choices:
            raise InputError(f"{table.name}: which columns are the choices? Give --choices; {_there(table)}")
        label = label or (_one(table, ("label", "answer", "answerKey"), "--label") if labelled else "")
        if not text:
            known = (("sent1", "sent2"), ("premise", "question"), ("article", "question"), ("context", "question"))
            single = (("question",), ("premise",), ("context",), ("text",))
            text = _known(table, (*known, *single))
        return Columns(kind, text, label, choices)
    if labelled and not label:
        label = _one(table, _LABELS, "--label")
    return Columns(kind, text or _guess_text(table, label), label)


def _word_columns(table: Table, text: tuple[str, ...], label: str, *, labelled: bool) -> Columns:
    """Words and tags, or texts and spans of characters."""
    words = words_column(table)
    if not text:
        text = (words,) if words else _guess_text(table, label)
    if labelled and not label:
        listed = isinstance(table.column(text[0])[0], list)
        found = tags_column(table) if listed else spans_column(table)
        if found is None:
            raise InputError(f"{table.name}: which column is the label? Give --label; {_there(table)}")
        label = found
    return Columns(WORDS, text, label)


def _guess_text(table: Table, label: str) -> tuple[str, ...]:
    for names in (*_PAIRS, *((name,) for name in _TEXTS)):
        if all(name in table.columns and name != label for name in names):
            return names
    texts = [n for n, values in table.columns.items() if n != label and all(isinstance(v, str) for v in values)]
    # Numbers, such as those of the rows, are no texts.
    texts = [n for n in texts if any(number_of(value) is None for value in table.columns[n])]
    if len(texts) == 1:
        return (texts[0],)
    raise InputError(f"{table.name}: which column is the text? Give --text; {_there(table)}")


def _choice_columns(table: Table) -> tuple[str, ...]:
    for names in (("choices",), ("options",), ("endings",)):
        values = table.columns.get(names[0])
        if values is not None and isinstance(values[0], list):
            return names
    for stem, first in (("ending", 0), ("choice", 1), ("choice", 0), ("option", 1), ("option", 0), ("solution", 1)):
        names = []
        while f"{stem}{first + len(names)}" in table.columns:
            names.append(f"{stem}{first + len(names)}")
        if len(names) > 1:
            return tuple(names)
    return ()


def _known(table: Table, alternatives: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    for names in alternatives:
        if all(name in table.columns for name in names):
            return names
    raise InputError(f"{table.name}: which column is the text? Give --text; {_there(table)}")


def _one(table: Table, names: tuple[str, ...], flag: str) -> str:
    for name in names:
        if name in table.columns:
            return name
    raise InputError(f"{table.name}: which column is the label? Give {flag}; {_there(table)}")


def _there(table: Table) -> str:
    return f"its columns are {', '.join(map(repr, table.columns))}"
