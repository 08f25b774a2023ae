"""Renames the tensors of a file by rules of the caller, ``REGEX=REPL``, before anything else reads their names."""

import dataclasses
import re
from collections.abc import Sequence

from deberta_jax.errors import InputError, brief, listed
from deberta_jax.weights.source import Checkpoint, Tensor


def parse_rule(rule: str) -> tuple[re.Pattern[str], str]:
    """Returns the pattern and the replacement of a rule, which the last ``=`` separates.

    Raises:
      InputError: there is no ``=``, or the pattern is no regular expression of Python, or the replacement names a group
        that the pattern has not.
    """
    pattern, equals, replacement = rule.rpartition("=")
    if not equals or not pattern:
        raise InputError(f"rename {brief(rule)!r}: give REGEX=REPL, such as '^bert\\.=deberta.'")
    try:
        compiled = re.compile(pattern)
        re.compile(f"(?:{pattern})|").sub(replacement, "")  # matches the empty text, so the template is read
    except (re.error, IndexError) as error:
        raise InputError(f"rename {brief(rule)!r}: {error}") from None
    return compiled, replacement


def rename_tensors(checkpoint: Checkpoint, rules: Sequence[str]) -> tuple[Checkpoint, tuple[str, ...]]:
    """Renames tensors as ``re.sub`` does, by all rules in order. The report still has the names in the file.

    Args:
      checkpoint: the opened file.
      rules: the rules.

    Returns:
      The checkpoint with the new names, and a note for each rule.

    Raises:
      InputError: a rule cannot be read, or changes no name; or two tensors get one name.
    """
    names = {name: name for name in checkpoint.tensors}
    notes: list[str] = []
    for rule in rules:
        pattern, replacement = parse_rule(rule)
        changed = {name: pattern.sub(replacement, now) for name, now in names.items()}
        count = sum(changed[name] != now for name, now in names.items())
        if not count:
            raise InputError(
                f"{checkpoint.path}: rename {brief(rule)!r}: changes no name; the names are {listed(names.values(), 5)}"
            )
        names = changed
        notes.append(f"renamed by {brief(rule)!r}: {count} tensors")
    tensors: dict[str, Tensor] = {}
    for name, new in names.items():
        if new in tensors:
            raise InputError(
                f"{checkpoint.path}: rename gives {brief(tensors[new].name, 200)} and {brief(name, 200)} one name, "
                f"{brief(new, 200)!r}"
            )
        tensors[new] = checkpoint.tensors[name]
    return dataclasses.replace(checkpoint, tensors=tensors), tuple(notes)
