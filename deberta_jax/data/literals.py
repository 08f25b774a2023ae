"""Parses lists and objects that JSON, Python or numpy wrote as text into a field of a csv file."""

import ast
import json
import re
import warnings
from typing import Any

from deberta_jax import storage

# A quoted string, a bare word or number, or one character of punctuation.
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")|(?P<word>[-+.\w]++)|(?P<mark>[\[\](){}:,=]))""",
    re.DOTALL,
)
_WORDS = {"None": None, "null": None, "nan": None, "True": True, "true": True, "False": False, "false": False}
_CLOSES = {"[": "]", "(": ")", "{": "}"}
_DEEPEST = 20


def parse_literal(text: str) -> Any:
    """Parses the printed form of a list or dict.

    It reads JSON, Python's ``repr`` of lists, tuples and dicts, and numpy's printed arrays, whose elements are not
    separated by commas (Python would join ``['a' 'b']`` to one string).

    Raises:
      ValueError: the text has another form, such as a list that was abbreviated with ``...``.
    """
    stripped = text.strip()
    if not stripped or stripped[0] not in "[{":
        raise ValueError("no list and no object")
    try:
        value = json.loads(stripped)
    except (ValueError, RecursionError):
        pass
    else:
        if storage.is_deep(value):
            raise ValueError("too deep")
        return value
    parser = _Parser(stripped)
    value = parser.value(0)
    if parser.peek() is not None:
        raise ValueError("something follows the list")
    return value


class _Parser:
    """Parses values from the tokens of a text. Raises ValueError if it has another form."""

    def __init__(self, text: str):
        self.tokens: list[tuple[str, str]] = []
        at, end = 0, len(text)
        while at < end:
            match = _TOKEN.match(text, at)
            if match is None:
                raise ValueError("not the printed form of a list")
            assert match.lastgroup is not None
            self.tokens.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()
        self.at = 0

    def peek(self) -> str | None:
        """Returns the next token without consuming it, or None at the end."""
        return self.tokens[self.at][1] if self.at < len(self.tokens) else None

    def take(self, expected: str | None = None) -> tuple[str, str]:
        """Consumes the next token, which must be ``expected`` if given, and returns its kind and text."""
        if self.at == len(self.tokens) or (expected is not None and self.tokens[self.at][1] != expected):
            raise ValueError("not the printed form of a list")
        self.at += 1
        return self.tokens[self.at - 1]

    def value(self, depth: int) -> Any:
        """Consumes and returns one value, which is nested ``depth`` levels deep."""
        if depth > _DEEPEST:
            raise ValueError("too deep")
        kind, token = self.take()
        if kind == "string":
            return _string(token)
        if kind == "word":
            return self._word(token, depth)
        if token in "[(":
            return self._items(token, depth)
        if token == "{":
            return self._pairs(depth)
        raise ValueError("not the printed form of a list")

    def _items(self, opening: str, depth: int) -> list[Any]:
        items: list[Any] = []
        while self.peek() != _CLOSES[opening]:
            items.append(self.value(depth + 1))
            if self.peek() == ",":
                self.take()
        self.take()
        return items

    def _pairs(self, depth: int) -> dict[Any, Any]:
        pairs: dict[Any, Any] = {}
        while self.peek() != "}":
            key = self.value(depth + 1)
            self.take(":")
            if not isinstance(key, str) or key in pairs:
                raise ValueError("not the printed form of an object")
            pairs[key] = self.value(depth + 1)
            if self.peek() == ",":
                self.take()
        self.take()
        return pairs

    def _word(self, word: str, depth: int) -> Any:
        if word == "array" and self.peek() == "(":
            self.take()
            value = self.value(depth + 1)
            while self.peek() == ",":  # such as "dtype=object"
                self.take()
                self.take("dtype")
                self.take("=")
                self.take()
            self.take(")")
            return value
        if word in _WORDS:
            return _WORDS[word]
        try:
            return int(word)
        except ValueError:
            return float(word)


def _string(token: str) -> str:
    """Returns the value of a quoted string."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # '\d' is valid: a backslash and a d
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return ast.literal_eval(token)
        except SyntaxError as error:
            raise ValueError(str(error)) from None
