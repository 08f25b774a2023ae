"""Defines the exception for bad input, and makes names from files printable."""

import itertools
from collections.abc import Iterable


class InputError(ValueError):
    """Signals that something the caller gave cannot be used.

    The message is one line, which names the thing (file, column, field, tensor) and says what to do. The command line
    prints it after ``error:`` and exits with code 2; in Python it is an ordinary ``ValueError``. Control characters in
    the message, which may come from names in files, are escaped.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Returns the text with control characters, and others that a terminal does not show, replaced by escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def brief(text: object, longest: int = 60) -> str:
    """Returns a name from a file for a message: printable, and truncated to ``longest`` characters."""
    shown = str(text)
    return printable(shown if len(shown) <= longest else f"{shown[:longest]}...")


def listed(names: Iterable[object], most: int = 10) -> str:
    """Returns names from a file for a message: at most ``most`` names, each ``brief``, and the number of others."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(brief(name) for name in itertools.islice(names, most)) + more
