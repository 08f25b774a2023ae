"""Files of labelled text as users have them, read into columns: csv, tsv, jsonl, parquet, CoNLL and SQuAD's JSON."""

import bisect
import csv
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from deberta_jax.data.files import matching, members, read_bytes
from deberta_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of equal length, in file order; csv and tsv values are str, others what their format gives.

    ``lines`` is the line of the file that each row starts at (its number, in a parquet file), for messages. A table of
    several files has ``parts``: the first row of each and its name.
    """

    name: str
    columns: dict[str, list[Any]]
    lines: Sequence[int]
    parts: tuple[tuple[int, str], ...] = ()

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """File and line of a row, for a message."""
        name = self.name
        if self.parts:
            name = self.parts[bisect.bisect_right(self.parts, row, key=lambda part: part[0]) - 1][1]
        return f"{name}, line {self.lines[row]}"

    def column(self, name: str) -> list[Any]:
        """Raises InputError with the columns there are if ``name`` is none of them."""
        if name not in self.columns:
            raise InputError(f"{self.name}: no column {name!r}; its columns are {', '.join(map(repr, self.columns))}")
        return self.columns[name]

    def texts(self, name: str) -> list[str]:
        """A column of text; raises InputError naming the line of a value that is missing or no text."""
        values = self.column(name)
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise InputError(f"{self.where(row)}: {name!r} is {value!r}; a text is needed")
        return values

    def word_lists(self, name: str) -> list[list[str]]:
        """A column of lists of words; raises InputError naming the line of anything else."""
        values = self.column(name)
        for row, value in enumerate(values):
            if not isinstance(value, list) or not value or not all(isinstance(word, str) for word in value):
                raise InputError(f"{self.where(row)}: {name!r} is {value!r}; a list of words is needed")
        return values

    def select(self, rows: Sequence[int]) -> "Table":
        """These rows alone."""
        columns = {name: [values[i] for i in rows] for name, values in self.columns.items()}
        parts = tuple((k, self.where(i).rpartition(", line ")[0]) for k, i in enumerate(rows)) if self.parts else ()
        return Table(self.name, columns, [self.lines[i] for i in rows], parts)


def read_tables(paths: Sequence[str]) -> Table:
    """The rows of several files, or of all that a pattern such as ``part-*.jsonl`` matches, one after the other.

    Columns are all that any file has; a row has None where its file lacks one.
    """
    files = [file for path in paths for file in matching(path)]
    tables = [read_table(file) for file in files]
    if len(tables) == 1:
        return tables[0]
    names = list(dict.fromkeys(name for table in tables for name in table.columns))
    columns = {name: [v for t in tables for v in t.columns.get(name, [None] * len(t))] for name in names}
    parts, first = [], 0
    for table in tables:
        parts.append((first, table.name))
        first += len(table)
    name = f"{tables[0].name} and {len(tables) - 1} more"
    return Table(name, columns, [line for table in tables for line in table.lines], tuple(parts))


Reader = Callable[[str, str], Table]  # from a file's name and its text


def read_table(path: str | Path, reader: Reader | None = None) -> Table:
    """Reads a file by its ending, or its text by ``reader``; ``-`` is standard input, jsonl.

    ``.csv`` (quoted) and ``.tsv`` (tab-separated, quotes are text): the first line names the columns. ``.jsonl``: an
    object a line. ``.parquet``. ``.conll``: a word a line, its tag in the last column, blank lines between sentences;
    columns ``tokens`` and ``tags``. ``.conllu``: ``tokens`` and the fields of CoNLL-U. ``.json``: SQuAD 1 or 2, a
    question a row.

    Raises:
      InputError: a file that is not there, is empty, is no UTF-8, has another ending, or has a row that does not fit
        the others; the message names file and line.
    """
    if str(path) == "-":
        return _parse("standard input", ".jsonl", sys.stdin.buffer.read())
    return _parse(str(path), Path(str(path)).suffix.lower(), read_bytes(str(path)), reader)


def _parse(name: str, kind: str, content: bytes, reader: Reader | None = None) -> Table:
    if kind == ".zip":
        raise InputError(f"{name}: is an archive; name a file in it, as in {name}/{[*members(Path(name)), 'FILE'][0]}")
    reader = reader or _READERS.get(kind)
    if reader is None and kind != ".parquet":
        raise InputError(f"{name}: ending {kind!r} is not known; expected {', '.join((*_READERS, '.parquet'))}")
    if reader is None:
        table = _read_parquet(name, content)
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{name}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None
        table = reader(name, text)
    if not len(table):
        raise InputError(f"{name}: no rows; the file is empty")
    return table


def _read_parquet(name: str, content: bytes) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f"{name}: parquet needs pyarrow; pip install 'deberta_jax[parquet]'") from None
    try:
        columns = pq.read_table(io.BytesIO(content)).to_pydict()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{name}: not readable as parquet ({reason(error)})") from None
    return Table(name, columns, range(1, 1 + len(next(iter(columns.values()), []))))


def parse_json(where: str, text: str) -> Any:
    """Raises InputError for text that is no JSON, or too deep or long a number to be read."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f", line {error.lineno}" if "\n" in text else ""
        raise InputError(f"{where}: not JSON ({error.msg}{at})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: JSON that cannot be read ({reason(error)})") from None


def reason(error: Exception) -> str:
    """An exception of a conversion as words in a line."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return " ".join(str(error).split()) or type(error).__name__


def _read_jsonl(name: str, text: str) -> Table:
    rows: list[dict[str, Any]] = []
    lines = []
    # Not splitlines: JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        row = parse_json(f"{name}, line {number}", line)
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict):
            raise InputError(f"{name}, line {number}: expected a JSON object, found {type(row).__name__}")
        rows.append(row)
        lines.append(number)
    names = list(dict.fromkeys(key for row in rows for key in row))
    return Table(name, {key: [row.get(key) for row in rows] for key in names}, lines)


def _read_csv(name: str, text: str) -> Table:
    reader = csv.reader(io.StringIO(text), strict=True)

    def rows():
        before = 0
        for row in reader:
            start, before = before + 1, reader.line_num
            if row:
                yield start, row

    limit = csv.field_size_limit(len(text) + 1)  # the default refuses fields above 128 KiB
    try:
        return table_of_lines(name, rows())
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.line_num}: {error}") from None
    finally:
        csv.field_size_limit(limit)


def _read_tsv(name: str, text: str) -> Table:
    return table_of_lines(name, tab_separated(text))


def tab_separated(text: str) -> list[tuple[int, list[str]]]:
    """Number and fields of every line that is not empty; a quote is a character like any other, as GLUE's files have
    unpaired ones."""
    lines = ((number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1))
    return [(number, line.split("\t")) for number, line in lines if line]


def table_of_lines(name: str, lines: Iterable[tuple[int, list[str]]]) -> Table:
    """Numbered lines of fields, of which the first names the columns.

    Raises:
      InputError: a column named twice, or a line that has not a field for each.
    """
    header: list[str] = []
    rows, numbers = [], []
    for number, fields in lines:
        if not header:
            header = fields
            if len(set(header)) < len(header):
                raise InputError(f"{name}: the header names a column twice: {', '.join(header)}")
            continue
        if len(fields) != len(header):
            raise InputError(
                f"{name}, line {number}: {len(fields)} fields where the header names {len(header)}; mend the line"
            )
        rows.append(fields)
        numbers.append(number)
    return Table(name, {key: [row[i] for row in rows] for i, key in enumerate(header)}, numbers)


def sentences(text: str, separator: str | None) -> Iterable[tuple[int, list[list[str]]]]:
    """(first line, fields of each word) of every sentence; comments and ``-DOCSTART-`` lines are no words."""
    words: list[list[str]] = []
    start = 1
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if not line.strip():
            if words:
                yield start, words
            words = []
            continue
        if line.startswith("-DOCSTART-"):
            continue
        if not words:
            start = number
        words.append(line.rstrip("\r").split(separator))


def read_conll(name: str, text: str) -> Table:
    """``tokens`` and ``tags`` of each sentence. Raises InputError for a word without a tag."""
    tokens, tags, lines = [], [], []
    for start, words in sentences(text, None):
        # A tab-separated word may be empty or hold a space; only the ends of the line are certain.
        for offset, fields in enumerate(words):
            if len(fields) < 2:
                raise InputError(f"{name}, line {start + offset}: {fields[0]!r} has no tag; give a word and its tag")
        tokens.append([fields[0] for fields in words])
        tags.append([fields[-1] for fields in words])
        lines.append(start)
    return Table(name, {"tokens": tokens, "tags": tags}, lines)


_CONLLU = {"tokens": 1, "lemmas": 2, "upos": 3, "xpos": 4, "heads": 6, "deprels": 7}


def _read_conllu(name: str, text: str) -> Table:
    columns: dict[str, list[Any]] = {key: [] for key in _CONLLU}
    lines = []
    for start, words in sentences(text, "\t"):
        plain = [fields for fields in words if not fields[0].startswith("#")]
        if any(len(fields) != 10 for fields in plain):
            raise InputError(f"{name}, line {start}: a CoNLL-U word has 10 tab-separated fields")
        # Ranges (1-2) and empty nodes (1.1) repeat or add words.
        plain = [fields for fields in plain if fields[0].isdigit()]
        if plain:
            lines.append(start)
            for key, i in _CONLLU.items():
                columns[key].append([fields[i] for fields in plain])
    return Table(name, columns, lines)


def _read_squad(name: str, text: str) -> Table:
    content = parse_json(name, text)
    try:
        rows = [
            {
                "id": str(question["id"]),
                "title": article.get("title", ""),
                "question": question["question"],
                "context": paragraph["context"],
                "answers": {
                    "text": [answer["text"] for answer in question.get("answers", [])],
                    "answer_start": [answer["answer_start"] for answer in question.get("answers", [])],
                },
                "is_impossible": bool(question.get("is_impossible", False)),
            }
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{name}: not SQuAD's JSON ({reason(error)}); other data belong in .jsonl") from None
    names = list(rows[0]) if rows else []
    return Table(name, {key: [row[key] for row in rows] for key in names}, range(1, len(rows) + 1))


_READERS: dict[str, Reader] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".json": _read_squad,
    ".conll": read_conll,
    ".conllu": _read_conllu,
}
