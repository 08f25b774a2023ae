"""Copies what a pickle built to plain JSON, within limits."""

from typing import Any

from deberta_jax.pickles.values import PickleError

_MOST_VALUES = 100_000
_MOST_LEVELS = 64
_MOST_CHARACTERS = 8 << 20


def as_json(value: Any) -> Any:
    """Returns a copy of a value as JSON has it: objects with text as keys, lists, text, numbers, true, false and null.

    A container that occurs many times is copied so many times, as JSON would write it, so the whole copy is limited.
    Keys that are integers become text, as in JSON.

    Raises:
      PickleError: the value holds something else, too much, or itself.
    """
    return _Copier().copy(value, 0)


class _Copier:
    """Counts the values of one copy and their characters."""

    def __init__(self):
        self.values = 0
        self.characters = 0

    def copy(self, value: Any, level: int) -> Any:
        """Returns a copy of a value that is nested in ``level`` others."""
        self.values += 1
        if self.values > _MOST_VALUES or level > _MOST_LEVELS:
            raise PickleError("holds more values, or more levels of them, than a config has")
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, int) and -(2**63) <= value < 2**63:
            return value
        if isinstance(value, list) or type(value) is tuple:  # not the named tuples that describe tensors
            return [self.copy(item, level + 1) for item in value]
        if isinstance(value, dict):
            return {self._key(key): self.copy(item, level + 1) for key, item in value.items()}
        raise PickleError(f"holds a {type(value).__name__}, which JSON does not have")

    def _text(self, text: str) -> str:
        self.characters += len(text)
        if self.characters > _MOST_CHARACTERS:
            raise PickleError("holds longer texts than a config has")
        return text

    def _key(self, key: Any) -> str:
        if isinstance(key, int) and not isinstance(key, bool):  # the machine keeps no larger keys than 64 bits
            return str(key)
        if not isinstance(key, str):
            raise PickleError(f"has a {type(key).__name__} as a key, which JSON does not have")
        return self._text(key)
