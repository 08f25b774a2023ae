"""Lets the API reference show docstring items of several names, such as `hidden_states, attentions: ...`.

mkdocstrings runs this extension of Griffe (`extensions` in `mkdocs.yml`). Griffe knows items of one name alone, so each
name gets an item with the same text.
"""

import re
from typing import Any

import griffe

# The indentation, the names, and the text with its continuation lines, which are indented further.
ITEM = re.compile(r"^( +)(\*{0,2}\w+(?:, \*{0,2}\w+)+):( .*(?:\n\1 +\S.*)*)", re.M)


class SeveralNames(griffe.Extension):
    """Splits docstring items of several names."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the docstring of an object. Griffe calls this for every object of the package."""
        if obj.docstring:
            obj.docstring.value = ITEM.sub(_one_item_each, obj.docstring.value)


def _one_item_each(item: re.Match[str]) -> str:
    return "\n".join(f"{item[1]}{name}:{item[3]}" for name in item[2].split(", "))
