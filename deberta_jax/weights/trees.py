"""Converts between a tree of parameters, a nested dict, and its leaves by path, such as ``deberta/pooler/bias``."""

from collections.abc import Callable, Mapping
from typing import Any

import jax


def leaves_by_path(tree: Mapping[str, Any], is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Returns the leaves of a tree by path.

    Args:
      tree: nested dicts.
      is_leaf: tells which nodes are leaves, as for ``jax.tree.leaves``.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tree of leaves by path; undoes ``leaves_by_path``."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *groups, last = path.split("/")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = leaf
    return tree
