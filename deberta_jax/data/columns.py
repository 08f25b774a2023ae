"""What a table is about, where the user does not say: its task and the columns of it. Every guess is told."""

import dataclasses

from deberta_jax.data.tables import Table
from deberta_jax.errors import InputError

CLASSIFICATION, REGRESSION_TASK, MULTI = "text-classification", "regression", "multi-label"
WORDS, SPANS, CHOICES = "token-classification", "question-answering", "multiple-choice"
KINDS = (CLASSIFICATION, REGRESSION_TASK, MULTI, WORDS, SPANS, CHOICES)

_PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text", "text_pair"),
    ("text1", "text2"), ("question", "sentence"), ("question", "passage"), ("query", "passage"),
)  # fmt: skip
_TEXTS = ("text", "sentence", "content", "review", "document", "body", "comment", "tweet", "title", "question")
_LABELS = ("label", "labels", "target", "class", "category", "score", "gold_label", "sentiment", "y")
_TAGS = ("tags", "ner_tags", "upos", "pos_tags", "labels", "label")


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
    if {"question", "context", "answers"} <= set(names):
        return SPANS
    if _choice_columns(table):
        return CHOICES
    words = names.get("tokens") or names.get("words")
    if words is not None and isinstance(words[0], list) and any(tag in names for tag in _TAGS):
        return WORDS
    return CLASSIFICATION


def guess_columns(
    table: Table, kind: str, text: tuple[str, ...], label: str, choices: tuple[str, ...], *, labelled: bool
) -> Columns:
    """What is not given is guessed.

    Raises:
      InputError: nothing fits; the message has the columns that there are.
    """
    if kind == SPANS:
        return Columns(kind, text or ("question", "context"), label or "answers")
    if kind == WORDS:
        words = text or _known(table, (("tokens",), ("words",)))
        return Columns(kind, words, label or (_one(table, _TAGS, "--label") if labelled else ""))
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


def _guess_text(table: Table, label: str) -> tuple[str, ...]:
    for names in (*_PAIRS, *((name,) for name in _TEXTS)):
        if all(name in table.columns and name != label for name in names):
            return names
    texts = [n for n, values in table.columns.items() if n != label and all(isinstance(v, str) for v in values)]
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
