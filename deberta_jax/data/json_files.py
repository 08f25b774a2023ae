"""Reads JSON files: arrays of objects, one object per line, SQuAD's documents, and the columns that pandas writes."""

import collections
import json
import logging
import re
from collections.abc import Sequence
from typing import Any

from deberta_jax import storage
from deberta_jax.data.table import Table, reason
from deberta_jax.errors import InputError, brief

_log = logging.getLogger(__name__)

# A row has a value, or None, in every column. If each row has a key of its own, these fill the memory.
_MANY_COLUMNS = 1000
_MOST_CELLS = 1 << 26
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a dict of a JSON object. Raises ValueError if a key occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        raise ValueError(f"an object names {brief(counts.most_common(1)[0][0])!r} twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def parse_json(where: str, text: str) -> Any:
    """Parses a JSON text.

    Args:
      where: file and line, for messages.
      text: the JSON text.

    Raises:
      InputError: the text is not JSON, has a key twice, is nested too deeply, or has a number with too many digits.
    """
    try:
        value = _DECODER.decode(text)
        _check_depth(value, text)
        return value
    except json.JSONDecodeError as error:
        at = f", line {error.lineno}" if "\n" in text else ""
        raise InputError(f"{where}: not JSON ({error.msg}{at})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: JSON that cannot be read ({reason(error)})") from None


def _check_depth(value: Any, text: str, start: int = 0, end: int | None = None) -> None:
    """Checks that a value is not nested too deeply. Raises ValueError otherwise.

    Args:
      value: the value.
      text, start, end: its JSON text, and where it is in it. Few brackets make no deep value, which is quickly seen.
    """
    if text.count("[", start, end) + text.count("{", start, end) > 64 and storage.is_deep(value):
        raise ValueError("nested more than 64 levels deep")


def read_jsonl_table(name: str, text: str) -> Table:
    """Reads one object per line, or an array of objects. Raises InputError with the line of anything else."""
    return _read(name, text, lines=True)


def read_json_table(name: str, text: str) -> Table:
    """Reads an array of objects, one object per line, SQuAD 1 or 2 (one row per question), or pandas' ``to_json``.

    Raises:
      InputError: the file is not JSON, or has another form.
    """
    return _read(name, text, lines=False)


def _read(name: str, text: str, *, lines: bool) -> Table:
    table = _table(name, text, lines=lines)
    return _without_surrogates(table) if _ESCAPED_SURROGATE.search(text) else table


def _table(name: str, text: str, *, lines: bool) -> Table:
    # Not splitlines, because JSON strings may contain U+2028 and similar characters unescaped.
    split = ((number, line.removeprefix("\ufeff")) for number, line in enumerate(text.split("\n"), 1))
    numbered = [(number, line) for number, line in split if line.strip()]
    if not numbered:
        return Table(name, {}, [])
    number, first = numbered[0][0], numbered[0][1].strip()
    complete = len(numbered) > 1 and _is_json(first)
    if first[0] == "[" and (len(numbered) == 1 or not complete):
        return _rows(name, _array_items(name, text))
    if len(numbered) > 1 and (complete or (lines and first[-1] not in "{,")):
        return _rows(name, [(n, parse_json(f"{name}, line {n}", line)) for n, line in numbered])
    value = parse_json(f"{name}, line {number}", first) if len(numbered) == 1 else parse_json(name, text)
    if _is_row(value, lines=lines):
        return _rows(name, [(number, value)])
    return _document(name, value)


def is_object_line(line: str) -> bool:
    """Returns whether a line is a whole JSON value that is no array: then each line of the file has one."""
    return line.lstrip()[:1] != "[" and _is_json(line)


def table_of_lines(name: str, lines: Sequence[tuple[int, str]]) -> Table:
    """Makes a table of (line number, JSON object) of a file with one object per line.

    Raises:
      InputError: a line is no JSON object; with its number.
    """
    table = _rows(name, [(number, parse_json(f"{name}, line {number}", line)) for number, line in lines])
    return _without_surrogates(table) if any(_ESCAPED_SURROGATE.search(line) for _, line in lines) else table


def _is_row(value: Any, *, lines: bool) -> bool:
    """Returns whether the only value of a file is a row, rather than a document with many rows."""
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
        pass  # parsing it later raises the right error
    return True


def _array_items(name: str, text: str) -> list[tuple[int, Any]]:
    """Returns (line, value) of the elements of an array; in a file of one line, (number of the element, value)."""
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
            value, at = _DECODER.raw_decode(text, counted)
            _check_depth(value, text, counted, at)
            items.append((line, value))
            if not isinstance(value, dict | str):  # no row, which is said below; more of these may fill the memory
                break
            at = skip(at)
            if text.startswith(",", at):
                at = skip(at + 1)
            elif not text.startswith("]", at):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        else:
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
    """Makes a table of (line, object). A string counts as an object with the key ``text``."""
    rows: list[dict[str, Any]] = []
    for number, item in items:
        row = {"text": item} if isinstance(item, str) else item
        if not isinstance(row, dict):
            raise InputError(f"{name}, line {number}: expected a JSON object, found {type(row).__name__}")
        rows.append(row)
    names = list(dict.fromkeys(key for row in rows for key in row))
    if len(names) > _MANY_COLUMNS and len(names) * len(rows) > _MOST_CELLS:
        raise InputError(f"{name}: its rows have {len(names)} different keys; give all rows the same keys")
    columns = {key: [row.get(key) for row in rows] for key in names}
    return Table(name, columns, [number for number, _ in items])


def _document(name: str, value: dict[str, Any]) -> Table:
    """Reads a file that is one object: SQuAD's, one with its rows under ``data``, or one of columns."""
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
    """Makes a table of SQuAD's JSON, with one row per question. Raises InputError if it has another form."""
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
    """Converts a list of answers to an object of lists, as in the hub's copies. Other values stay as they are."""
    if value is None:
        value = []
    if isinstance(value, list) and all(isinstance(a, dict) and "text" in a and "answer_start" in a for a in value):
        return {"text": [a["text"] for a in value], "answer_start": [a["answer_start"] for a in value]}
    return value


def _without_surrogates(table: Table) -> Table:
    """Replaces lone surrogates, which UTF-8 cannot represent, by U+FFFD, as the tokenizers do."""
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
