"""Checks the options of a command, before any of them is used: their types, and the numbers among them."""

import dataclasses
import math
import numbers
import types
import typing
from typing import Any

import numpy as np

from deberta_jax.errors import InputError, shown

_INT64 = 2**63
_FLOAT32 = float(np.finfo(np.float32).max)
# Sizes are also those of arrays and counters of 32 bits.
_SIZES = ("batch_size", "max_length", "row_length", "epochs", "steps", "accumulate", "lora", "generator_layers")


def check_options(options: Any) -> None:
    """Checks the types of a dataclass of options, and of those in it, and that its numbers are finite and fit.

    Raises:
      InputError: an option has another type, or none of the values that it may have; a number is not finite or too
        large for float32; an integer needs more than 64 bits, a size more than 32; or a seed is negative.
    """
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value, option = getattr(options, field.name), f"--{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            check_options(value)
        elif not _fits(value, hints[field.name]):
            raise InputError(f"{option} {shown(value)}: expected {_expected(hints[field.name])}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"{option} {number}: must be a finite number")
            if isinstance(number, float) and abs(number) > _FLOAT32:
                raise InputError(f"{option} {number}: must be a number that float32 can represent, up to 3.4e38")
            if isinstance(number, int) and not isinstance(number, bool):
                _check_integer(option, field.name, number)


def _fits(value: Any, hint: Any) -> bool:
    """Returns whether a value has a type of the options: a Literal, a plain type, a tuple of one, or one of several."""
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return any(value is choice or (isinstance(value, str) and value == choice) for choice in of)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, kind) for kind in of)
    if origin is tuple:
        return isinstance(value, tuple | list) and all(_fits(item, of[0]) for item in value)
    if hint in (int, float):
        number = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool | np.bool)
    if hint is bool:
        return isinstance(value, bool | np.bool)
    if hint is str:
        return isinstance(value, str)
    return not isinstance(hint, type) or isinstance(value, hint)


def _expected(hint: Any) -> str:
    """Returns what a type of the options is called in a message."""
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, of))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_expected, of))
    if origin is tuple:
        return f"a list, each {_expected(of[0])}"
    names = {int: "an integer", float: "a number", bool: "True or False", str: "a text", type(None): "None"}
    return names.get(hint) or f"a {getattr(hint, '__name__', hint)}"


def _check_integer(option: str, name: str, value: int) -> None:
    if name == "seed" and not 0 <= value < _INT64:
        raise InputError(f"{option} {_shown(value)}: must be between 0 and 2**63 - 1")
    if name in _SIZES and value >= 2**31:
        raise InputError(f"{option} {_shown(value)}: must be below 2**31")
    if not -_INT64 <= value < _INT64:
        raise InputError(f"{option} {_shown(value)}: must be below 2**63")


def _shown(value: int) -> str:
    """Returns an integer as text; of one with very many digits, which Python does not print, its size."""
    bits = value.bit_length()
    return str(value) if bits <= 256 else f"(a number of {bits} bits)"
