"""Tables of JSON: an array of objects, an object a line, SQuAD's documents, and pandas' objects of columns."""

import json
import logging
import re
from collections.abc import Sequence
from typing import Any

from deberta_jax.data.table import Table, reason
from deberta_jax.errors import InputError

_log = logging.getLogger(__name__)

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object names {next(n for n in names if names.count(n) > 1)!r} twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def parse_json(where: str, text: str) -> Any:
    """Returns the value of a JSON text.

    Raises:
      InputError: text that is no JSON, names a key twice, or is too deep or long a number to be read.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        at = f", line {error.lineno}" if "\n" in text else ""
        raise InputError(f"{where}: not JSON ({error.msg}{at})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: JSON that cannot be read ({reason(error)})") from None


def read_jsonl(name: str, text: str) -> Table:
    """Reads an object a line, or one array of objects. Raises InputError with the line of anything else."""
    return _read(name, text, lines=True)


def read_json(name: str, text: str) -> Table:
    """Reads an array of objects, an object a line, SQuAD 1 or 2 (a question a row), or what pandas' ``to_json`` writes.

    Raises:
      InputError: JSON of another form, or no JSON.
    """
    return _read(name, text, lines=False)


def _read(name: str, text: str, *, lines: bool) -> Table:
    table = _table(name, text, lines=lines)
    return _without_surrogates(table) if _ESCAPED_SURROGATE.search(text) else table


def _table(name: str, text: str, *, lines: bool) -> Table:
    # Not splitlines: JSON strings may hold U+2028 and its like unescaped.
    split = ((number, line.removeprefix("\ufeff")) for number, line in enumerate(text.split("\n"), 1))
    numbered = [(number, line) for number, line in split if line.strip()]
    if not numbered:
        return Table(name, {}, [])
    number, first = numbered[0][0], numbered[0][1].strip()
    complete = _is_json(first)
    if first[0] == "[" and (len(numbered) == 1 or not complete):
        return _rows(name, _array_items(name, text))
    if len(numbered) > 1 and (complete or (lines and first[-1] not in "{,")):
        return _rows(name, [(n, parse_json(f"{name}, line {n}", line)) for n, line in numbered])
    value = parse_json(f"{name}, line {number}", first) if len(numbered) == 1 else parse_json(name, text)
    if _is_row(value, lines=lines):
        return _rows(name, [(number, value)])
    return _document(name, value)


def _is_row(value: Any, *, lines: bool) -> bool:
    """Whether a file's only value is a row, and not a document of many."""
    if not isinstance(value, dict):
        return True
    scalars = any(not isinstance(field, (dict, list)) for field in value.values())
    return not isinstance(value.get("data"), list) and (lines or scalars)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    except (ValueError, RecursionError):
        pass  # the one who parses it says what is wrong
    return True


def _array_items(name: str, text: str) -> list[tuple[int, Any]]:
    """The elements of an array, each with the line that it begins in; with its number where there is but one line."""
    items: list[tuple[int, Any]] = []
    at, line, counted = text.index("[") + 1, 1, 0
    blank = re.compile(r"[ \t\r\n]*")

    def skip(at: int) -> int:
        match = blank.match(text, at)
        assert match is not None
        return match.end()

    try:
        at = skip(at)
        while not text.startswith("]", at):
            line, counted = line + text.count("\n", counted, at), at
            value, at = _DECODER.raw_decode(text, at)
            items.append((line, value))
            at = skip(at)
            if text.startswith(",", at):
                at = skip(at + 1)
            elif not text.startswith("]", at):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        if skip(at + 1) != len(text):
            raise json.JSONDecodeError("Extra data", text, skip(at + 1))
    except json.JSONDecodeError as error:
        raise InputError(f"{name}, line {error.lineno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}, line {line}: JSON that cannot be read ({reason(error)})") from None
    if "\n" not in text.strip():
        return [(number, value) for number, (_, value) in enumerate(items, 1)]
    return items


def _rows(name: str, items: Sequence[tuple[int, Any]]) -> Table:
    rows: list[dict[str, Any]] = []
    for number, item in items:
        row = {"text": item} if isinstance(item, str) else item
        if not isinstance(row, dict):
            raise InputError(f"{name}, line {number}: expected a JSON object, found {type(row).__name__}")
        rows.append(row)
    names = list(dict.fromkeys(key for row in rows for key in row))
    columns = {key: [row.get(key) for row in rows] for key in names}
    return Table(name, columns, [number for number, _ in items])


def _document(name: str, value: dict[str, Any]) -> Table:
    """A file of one object: SQuAD's, one with its rows under ``data``, or one of columns."""
    data = value.get("data")
    if isinstance(data, list) and data and all(isinstance(row, dict) and "paragraphs" not in row for row in data):
        return _rows(name, list(enumerate(data, 1)))
    columns = list(value.values())
    if columns and all(isinstance(column, dict) and column.keys() == columns[0].keys() for column in columns):
        keys = list(columns[0])
        if keys and keys == [str(i) for i in range(len(keys))]:
            table = {key: list(column.values()) for key, column in value.items()}
            return Table(name, table, range(1, len(keys) + 1))
    return _squad(name, value)


def _squad(name: str, content: Any) -> Table:
    try:
        rows = [
            {
                "id": None if question.get("id") is None else str(question["id"]),
                "title": article.get("title", ""),
                "question": question["question"],
                "context": paragraph["context"],
                "answers": _answers(question.get("answers")),
                "is_impossible": bool(question.get("is_impossible", False)),
            }
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{name}: not SQuAD's JSON ({reason(error)}); other data belong in .jsonl") from None
    unnamed = [i for i, row in enumerate(rows) if row["id"] is None]
    for i in unnamed:
        rows[i]["id"] = str(i + 1)
    if unnamed:
        _log.info("%s: %d questions have no id; theirs is their number", name, len(unnamed))
    names = list(rows[0]) if rows else []
    return Table(name, {key: [row[key] for row in rows] for key in names}, range(1, len(rows) + 1))


def _answers(value: Any) -> Any:
    """A list of answers as an object of lists, the form of the hub's copies; what has another form stays."""
    if value is None:
        value = []
    if isinstance(value, list) and all(isinstance(a, dict) and "text" in a and "answer_start" in a for a in value):
        return {"text": [a["text"] for a in value], "answer_start": [a["answer_start"] for a in value]}
    return value


def _without_surrogates(table: Table) -> Table:
    """Replaces halves of surrogate pairs, which no text can hold, by U+FFFD, as the tokenizers do."""
    count = 0

    def clean(value: Any) -> Any:
        nonlocal count
        if isinstance(value, str):
            if value.isascii() or not _SURROGATE.search(value):
                return value
            count += 1
            return _SURROGATE.sub("\ufffd", value)
        if isinstance(value, list):
            return [clean(one) for one in value]
        if isinstance(value, dict):
            return {clean(key): clean(one) for key, one in value.items()}
        return value

    try:
        columns = {clean(name): [clean(value) for value in values] for name, values in table.columns.items()}
    except RecursionError:
        raise InputError(f"{table.name}: JSON that cannot be read (too deep)") from None
    if count:
        _log.info("%s: %d texts hold half a surrogate pair; it is read as U+FFFD", table.name, count)
    return Table(table.name, columns, table.lines)
