"""An operation that exists on no machine: a program that needs it is refused when it is lowered, with a reason.

Which machine a program is for is known only then (it may be compiled ahead of time for one that is not there), so this
is where ``attention='pallas'`` can refuse a machine that has no kernel.
"""

import functools
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir

from deberta_jax.errors import InputError

_refused = Primitive("refused")
_refused.multiple_results = True


@_refused.def_abstract_eval
def _(*, message: str, results: tuple[Any, ...]) -> tuple[Any, ...]:
    return results


def _refuse(context: Any, *, message: str, results: tuple[Any, ...]) -> Any:
    raise InputError(message)


mlir.register_lowering(_refused, _refuse)
_refused.def_impl(functools.partial(_refuse, None))


def refused(message: str, like: Any) -> Any:
    """Arrays shaped like those of the tree ``like``; ``InputError(message)`` where a program with them is lowered."""
    leaves, tree = jax.tree.flatten(like)
    results = tuple(ShapedArray(leaf.shape, leaf.dtype) for leaf in leaves)
    return tree.unflatten(_refused.bind(message=message, results=results))
