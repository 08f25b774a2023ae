"""Describes a model and the parameters of its parts as a table."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from deberta_jax.models.base import Model
from deberta_jax.models.parameters import abstract_params


def summary(model: Model) -> str:
    """Returns a table of a model's parts with the shapes of their parameters, and how many they have in all.

    Nothing is allocated. Parameters of the layers are stacked: their first axis L counts layers, and the table also
    gives the number in one layer.

    Args:
      model: a model of any head.

    Returns:
      Text of several lines, indented by depth.
    """
    params = abstract_params(model)
    total = _count(params)
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    lines = [f"{model!r}", f"{total:,} parameters, {size / 2**20:,.1f} MiB"]
    rows = list(_rows(params, model.config.num_hidden_layers, depth=1))
    width = max(len(name) for name, _, _ in rows)
    lines += [f"{name:<{width}}  {count:>14,}  {note}".rstrip() for name, count, note in rows]
    return "\n".join(lines)


def _rows(tree: Mapping[str, Any], layers: int, depth: int) -> Iterator[tuple[str, int, str]]:
    """Yields for every part its indented name, its number of parameters, and its shape or the number in a layer."""
    for name, part in tree.items():
        if isinstance(part, dict):
            note = f"{layers} layers of {_count(part) // layers:,}" if name == "layers" else ""
            yield "  " * depth + name, _count(part), note
            yield from _rows(part, layers, depth + 1)
        else:
            yield "  " * depth + name, math.prod(part.shape), str(list(part.shape))


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
