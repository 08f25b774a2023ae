"""Reads files with one word per line: CoNLL's columns and CoNLL-U."""

import collections
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

from deberta_jax.data.table import Table
from deberta_jax.errors import InputError, shown

_log = logging.getLogger(__name__)

_DOCUMENT = "-DOCSTART-"
Line = tuple[int, str]


def sentences(text: str) -> Iterator[list[Line]]:
    """Yields the (number, text) of the lines of each sentence, which end at blank lines and ``-DOCSTART-`` lines."""
    if "\n" not in text:
        text = text.replace("\r", "\n")
    lines: list[Line] = []
    for number, line in enumerate([*text.split("\n"), ""], 1):
        # A line of other white space, such as a no-break space, is a word.
        line = line.rstrip("\r").removeprefix("\ufeff")
        if line.strip(" \t") and not _begins_document(line):
            lines.append((number, line))
            continue
        if lines:
            yield lines
        lines = []


def _begins_document(line: str) -> bool:
    return line.startswith(_DOCUMENT) and line[len(_DOCUMENT) : len(_DOCUMENT) + 1] in ("", " ", "\t")


def read_conll(name: str, text: str) -> Table:
    """Reads a file with one word per line and its tag in the last column.

    If any line has a tab, only tabs separate columns, so a word may contain a space or be empty; otherwise spaces do.
    Other white space belongs to the word. Lines at the start of a sentence that begin with ``#`` are comments, unless
    they have as many columns and a tag as other lines. A first column that numbers the words of every sentence is left
    out. A file with one column has no tags.

    Args:
      name: the name of the file, for messages.
      text: its contents.

    Returns:
      A table with one sentence per row, in the columns ``tokens`` and ``tags``.

    Raises:
      InputError: a word has no tag, or another number of columns than the others.
    """
    groups = list(sentences(text))
    words, comments = _columns(groups)
    if comments:
        _log.info("%s: %d lines that begin with # are comments", name, comments)
    words = [group for group in words if group]
    if not words:
        return Table(name, {}, [])
    _check(name, words)
    count = len(words[0][0][1])
    if count > 1 and _numbered(words):
        _log.info("%s: the first column numbers the words; the second is the word", name)
        words = [[(number, fields[1:]) for number, fields in group] for group in words]
        count -= 1
    columns: dict[str, list[Any]] = {"tokens": [[fields[0] for _, fields in group] for group in words]}
    if count > 1:
        columns["tags"] = [[fields[-1].strip(" ") for _, fields in group] for group in words]
    return Table(name, columns, [group[0][0] for group in words])


def _columns(groups: Sequence[Sequence[Line]]) -> tuple[list[list[tuple[int, list[str]]]], int]:
    """Splits lines into fields and removes comments.

    Returns:
      For each sentence the (line number, fields) of its words, and the number of comments.
    """
    leading = [
        next((i for i, (_, line) in enumerate(group) if not line.startswith("#")), len(group)) for group in groups
    ]
    certain = any(start < len(group) for group, start in zip(groups, leading, strict=True))
    tabs = any(
        "\t" in line for group, start in zip(groups, leading, strict=True) for _, line in group[start * certain :]
    )
    blanks = re.compile(" +")

    def split(line: str) -> list[str]:
        return line.split("\t") if tabs else blanks.split(line.strip(" "))

    words = [[(number, split(line)) for number, line in group] for group in groups]
    if not certain or not any(leading):
        return words, 0
    form = lambda fields: (len(fields), fields[-1].strip(" "))
    known = {form(fields) for group, start in zip(words, leading, strict=True) for _, fields in group[start:]}
    comments = 0
    for i, (group, start) in enumerate(zip(words, leading, strict=True)):
        skipped = next((k for k in range(start) if form(group[k][1]) in known), start)
        comments += skipped
        words[i] = group[skipped:]
    return words, comments


def _check(name: str, words: Sequence[Sequence[tuple[int, list[str]]]]) -> None:
    """Checks that all words have the same number of fields. Raises InputError otherwise."""
    counts = collections.Counter(len(fields) for group in words for _, fields in group)
    usual = counts.most_common(1)[0][0]
    if len(counts) == 1:
        return
    if usual == 1:
        usual = counts.most_common(2)[1][0]
    number, fields = next((n, f) for group in words for n, f in group if len(f) != usual)
    if len(fields) == 1:
        raise InputError(f"{name}, line {number}: {shown(fields[0])} has no tag; give a word and its tag")
    raise InputError(
        f"{name}, line {number}: {len(fields)} columns where other lines have {usual}; separate columns by tabs if a "
        "word holds a blank"
    )


def _numbered(words: Sequence[Sequence[tuple[int, list[str]]]]) -> bool:
    """Returns whether the first field numbers the words of each sentence from 1."""
    numbers = all(fields[0] == str(i) for group in words for i, (_, fields) in enumerate(group, 1))
    return numbers and any(len(group) > 1 for group in words)


_CONLLU = {"tokens": 1, "lemmas": 2, "upos": 3, "xpos": 4, "heads": 6, "deprels": 7}


def read_conllu(name: str, text: str) -> Table:
    """Reads CoNLL-U into a table with one sentence per row, in ``tokens`` and columns for the other fields.

    Raises:
      InputError: a word does not have ten fields.
    """
    columns: dict[str, list[Any]] = {key: [] for key in _CONLLU}
    lines = []
    for group in sentences(text):
        plain = [(number, line.split("\t")) for number, line in group if not line.startswith("#")]
        for number, fields in plain:
            if len(fields) != 10:
                raise InputError(f"{name}, line {number}: a CoNLL-U word has 10 tab-separated fields")
        # Ranges (1-2) and empty nodes (1.1) repeat or add words.
        rows = [fields for _, fields in plain if fields[0].isdecimal()]
        if rows:
            lines.append(group[0][0])
            for key, i in _CONLLU.items():
                columns[key].append([fields[i] for fields in rows])
    return Table(name, columns, lines)
