"""Converts tables of annotation tools and spreadsheets to the columns of tasks, with one text or sentence per row."""

import collections
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from deberta_jax.data.spans import is_span_column
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError

_log = logging.getLogger(__name__)

WORD_COLUMNS = ("tokens", "words", "token", "word", "form")
TAG_COLUMNS = ("tags", "ner_tags", "ner", "upos", "pos_tags", "labels", "tag", "label", "ner_tag", "pos", "entities")
_SENTENCE = re.compile(r"(?i)sent(?:ence)?s?[ _#-]*(id|no|nr|num|number|idx|index)?[ _#:]*")
_NUMBERED = re.compile(r"\D{0,20}\d+")


def arrange(table: Table, *, words: bool) -> Table:
    """Converts a table to one text or sentence per row.

    It recognises the tasks of Label Studio and of Prodigy, in which a task that was not accepted has no label. Other
    tables are returned as they are.

    Args:
      table: the table of the file.
      words: whether to recognise a table with one word per row and a column that numbers the sentences.

    Raises:
      InputError: a task of Label Studio cannot be used; with its line.
    """
    columns = table.columns
    if "data" in columns and ("annotations" in columns or "completions" in columns):
        return _label_studio(table)
    if "spans" in columns and "answer" in columns and is_span_column(columns["spans"]):
        return _prodigy(table)
    return _sentences(table) if words else table


def may_join_rows(table: Table) -> bool:
    """Returns whether ``arrange`` may join rows of a table with these columns to sentences."""
    return any(_SENTENCE.fullmatch(name) for name in table.columns)


def named_column(table: Table, names: tuple[str, ...]) -> str | None:
    """Returns the first of these columns that the table has, regardless of case, or None."""
    folded = {name.casefold(): name for name in reversed(list(table.columns))}
    return next((folded[name] for name in names if name in folded), None)


def _sentences(table: Table) -> Table:
    """Joins a table with one word per row to sentences, by a column that numbers them.

    The number may be given at the first word of each sentence only.
    """
    sentence = next((name for name in table.columns if _numbers_sentences(table, name)), None)
    word = named_column(table, WORD_COLUMNS)
    if sentence is None or word is None or not all(isinstance(value, str) for value in table.columns[word]):
        return table
    starts, before = [], None
    for row, value in enumerate(table.columns[sentence]):
        number = None if value is None else str(value).strip()
        if not starts or (number and number != before):
            starts.append(row)
        before = number or before
    if len(starts) == len(table):
        return table
    _log.info("%s: a word a row, in %d sentences by the column %r", table.name, len(starts), sentence)
    ends = [*starts[1:], len(table)]
    columns = {
        name: [values[start:end] for start, end in zip(starts, ends, strict=True)]
        for name, values in table.columns.items()
        if name != sentence
    }
    by_sentence = table.select(starts)
    return Table(table.name, columns, by_sentence.lines, by_sentence.parts, table.class_names)


def _numbers_sentences(table: Table, name: str) -> bool:
    """Returns whether a column has a name such as "Sentence #" and numbers sentences, rather than contains them."""
    match = _SENTENCE.fullmatch(name)
    if match is None:
        return False
    values = (str(value).strip() for value in table.columns[name] if value is not None)
    return match[1] is not None or "#" in name or all(not value or _NUMBERED.fullmatch(value) for value in values)


def _prodigy(table: Table) -> Table:
    """Converts the tasks of Prodigy. Those that were not accepted have None as ``spans``."""
    answers = table.columns["answer"]
    rest = {row for row, answer in enumerate(answers) if answer not in ("accept", None)}
    if rest:
        _log.info("%s: %d of %d tasks were not accepted; they have no label", table.name, len(rest), len(table))
    spans = [None if row in rest else spans or [] for row, spans in enumerate(table.columns["spans"])]
    # Prodigy's tokens are objects that repeat the text.
    kept = {name: values for name, values in table.columns.items() if name not in ("tokens", "answer")}
    return Table(table.name, {**kept, "spans": spans}, table.lines, table.parts)


def _label_studio(table: Table) -> Table:
    """Converts the tasks of Label Studio to ``text`` with ``spans`` or ``label``."""
    annotations = table.columns.get("annotations") or table.columns["completions"]
    texts, spans, choices, several = [], [], [], 0
    for row, data in enumerate(table.columns["data"]):
        done = [a for a in annotations[row] or [] if isinstance(a, Mapping) and not a.get("was_cancelled")]
        several += len(done) > 1
        results = (done[0].get("result") or []) if done else []
        results = [r for r in results if isinstance(r, Mapping) and isinstance(r.get("value"), Mapping)]
        texts.append(_text(table, row, data, results))
        marked = [{**r["value"], "label": r["value"]["labels"]} for r in results if "labels" in r["value"]]
        chosen = [choice for r in results for choice in r["value"].get("choices") or []]
        spans.append(marked if done else None)
        choices.append(chosen if done else None)
    if several:
        _log.info("%s: %d tasks have several annotations; the first of each is read", table.name, several)
    columns: dict[str, Sequence[Any]] = {}
    if "id" in table.columns:
        columns["id"] = table.columns["id"]
    columns["text"] = texts
    if any(spans) or not any(choices):
        columns["spans"] = spans
    if any(choices):
        single = all(value is None or len(value) <= 1 for value in choices)
        columns["label"] = [value[0] if value else None for value in choices] if single else choices
    return Table(table.name, columns, table.lines, table.parts)


def _text(table: Table, row: int, data: Any, results: list[Any]) -> str:
    """Returns the text of a Label Studio task: the field to which its results refer, or its only text field.

    Raises:
      InputError: there is no such field.
    """
    fields = (
        {name: value for name, value in data.items() if isinstance(value, str)} if isinstance(data, Mapping) else {}
    )
    about = collections.Counter(r.get("to_name") for r in results if r.get("to_name") in fields)
    if about:
        return fields[about.most_common(1)[0][0]]
    if "text" in fields:
        return fields["text"]
    if len(fields) != 1:
        raise InputError(
            f"{table.where(row)}: 'data' has no field 'text'; its fields are {', '.join(fields) or 'none'}"
        )
    return next(iter(fields.values()))
