"""The one exception that means "the input is at fault, not the program", and names from files made fit to be shown."""

import itertools
from collections.abc import Iterable


class InputError(ValueError):
    """Something the caller gave cannot be used.

    The message is one line: it names the thing (file, column, field, tensor) and says what to do. The command line
    prints it after ``error:`` and exits with code 2; from Python it is an ordinary ``ValueError``. Control characters,
    which a name from a file may hold, are escaped.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Returns the text with every character that a terminal would act on or not show replaced by its escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def brief(text: object, longest: int = 60) -> str:
    """Returns a name from a file for a message: printable, and cut after ``longest`` characters."""
    shown = str(text)
    return printable(shown if len(shown) <= longest else f"{shown[:longest]}...")


def listed(names: Iterable[object], most: int = 10) -> str:
    """Returns names from a file for a message: at most ``most``, each ``brief``, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(brief(name) for name in itertools.islice(names, most)) + more
