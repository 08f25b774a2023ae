"""Checks the numbers among the options of a command, before any of them is used."""

import dataclasses
import math
from typing import Any

import numpy as np

from deberta_jax.errors import InputError

_INT64 = 2**63
_FLOAT32 = float(np.finfo(np.float32).max)
# Sizes are also those of arrays and counters of 32 bits.
_SIZES = ("batch_size", "max_length", "row_length", "epochs", "steps", "accumulate", "lora", "generator_layers")


def check_numbers(options: Any) -> None:
    """Checks that all numbers of a dataclass of options, and of those in it, are finite and of a size that fits.

    Raises:
      InputError: an option is no number or too large for float32, an integer needs more than 64 bits, a size more than
        32, or a seed is negative.
    """
    for field in dataclasses.fields(options):
        value, option = getattr(options, field.name), f"--{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            check_numbers(value)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"{option} {number}: must be a finite number")
            if isinstance(number, float) and abs(number) > _FLOAT32:
                raise InputError(f"{option} {number}: must be a number that float32 can represent, up to 3.4e38")
            if isinstance(number, int) and not isinstance(number, bool):
                _check_integer(option, field.name, number)


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
