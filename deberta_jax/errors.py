"""Defines the exception for bad input, and formats untrusted names and values for messages."""

import difflib
import itertools
import numbers
import os
from collections.abc import Iterable, Sequence
from typing import Any

LONGEST_MESSAGE = 4000
"""Largest number of characters of a message."""


class InputError(ValueError):
    """Signals that something the caller gave cannot be used.

    The message is one line, which names the thing (file, column, field, tensor) and says what to do. The command line
    prints it after ``error:`` and exits with code 2; in Python it is an ordinary ``ValueError``. Control characters in
    the message, which may come from names in files, are escaped, and a very long message is cut in its middle.
    """

    def __init__(self, message: str):
        if len(message) > LONGEST_MESSAGE:
            half = LONGEST_MESSAGE // 2
            message = f"{message[:half]} ... {message[-half:]}"
        super().__init__(printable(message))


RUN_AGAIN = 42
"""Exit code of a process that has done nothing wrong: the same command goes on when it is run again."""


class RunAgainError(RuntimeError):
    """Signals that nothing which the caller gave is wrong, and that the same command may succeed when it is run again.

    Another process of the run is gone, or a disk or a bucket cannot be reached now. The message is one line; the
    command line prints it after ``error:`` and exits with code ``RUN_AGAIN``.
    """

    def __init__(self, message: str):
        super().__init__(printable(" ".join(message.split())))


def printable(text: str) -> str:
    """Returns the text with control characters, and others that a terminal does not show, replaced by escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """Returns a text of several lines with ``printable`` applied to each; tabs are kept."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def brief(text: object, longest: int = 60) -> str:
    """Returns a name from a file, or an exception, for a message: printable, and cut to ``longest`` characters.

    Values of other types may be large or nested, and are formatted as ``shown`` does.
    """
    if isinstance(text, BaseException):
        text = " ".join(str(text).split())
    elif isinstance(text, os.PathLike):
        text = os.fspath(text)
    whole = text if isinstance(text, str) else shown(text, longest)
    return printable(whole if len(whole) <= longest else f"{whole[:longest]}...")


def shown(value: Any, longest: int = 60) -> str:
    """Returns a value from a file for a message, like ``repr`` but cut to ``longest`` characters.

    Only what the message shows is formatted, so a huge, nested or shared value takes no time. No method of a value of
    an unknown type is called.
    """
    return _cut(printable("".join(_formatted(value, [longest]))), longest)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."


def _formatted(value: Any, left: list[int], depth: int = 0) -> Iterable[str]:
    """Yields the parts of a value's text until about ``left[0]`` characters have been given."""
    kind = type(value)
    if kind in (str, bytes):
        text = repr(value[: max(left[0], 0) + 1])
    elif isinstance(value, int) and value.bit_length() > 256:
        text = f"an integer of {value.bit_length()} bits"
    elif isinstance(value, numbers.Number | None):
        text = str(value)
    elif kind in (list, tuple, dict) and depth < 4:
        yield from _items(value, left, depth)
        return
    else:
        text = f"<{kind.__name__}>"
    left[0] -= len(text)
    yield text


def _items(value: Any, left: list[int], depth: int) -> Iterable[str]:
    begin, end = {list: "[]", tuple: "()", dict: "{}"}[type(value)]
    yield begin
    for i, item in enumerate(value):
        left[0] -= 2
        if left[0] < 0:
            yield "..."
            break
        if i:
            yield ", "
        yield from _formatted(item, left, depth + 1)
        if isinstance(value, dict):
            yield ": "
            yield from _formatted(value[item], left, depth + 1)
    yield f",{end}" if isinstance(value, tuple) and len(value) == 1 else end


def listed(names: Iterable[object], most: int = 10) -> str:
    """Returns names from a file for a message: at most ``most`` names, each ``brief``, and the number of others."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(brief(name) for name in itertools.islice(names, most)) + more


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """Returns ``; did you mean 'x'?`` for the one of ``names`` that is most like ``name``; empty if none is like it.

    Capitals are read as small letters.
    """
    spelled = {known.lower(): known for known in names}
    near = difflib.get_close_matches(str(name)[:60].lower(), list(spelled), 1)
    return f"; did you mean {spelled[near[0]]!r}?" if near else ""


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Raises InputError, which lists the choices, unless the argument ``name`` has one of them as its value."""
    if value not in known:
        raise InputError(
            f"{name}={shown(value)}: expected one of {', '.join(map(repr, known))}{did_you_mean(value, known)}"
        )
