"""An operation that exists on no platform: lowering a program that needs it raises an error that says why.

The platform of a program is known only when it is lowered (it may be compiled ahead of time for a machine that is not
there), so this is where ``attention='pallas'`` can refuse a platform without a kernel. A primitive with a lowering rule
of its own, as in JAX's guide to primitives, is the one public way to run code at that point.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters.mlir import register_lowering

from deberta_jax.errors import InputError

_refused = Primitive("refused")
_refused.multiple_results = True


@_refused.def_abstract_eval
def _(*arrays: Any, message: str) -> list[Any]:
    return list(arrays)


def _refuse(context: Any, *arrays: Any, message: str) -> Any:
    raise InputError(message)


register_lowering(_refused, _refuse)
_refused.def_impl(functools.partial(_refuse, None))


def refused(message: str, like: Any) -> Any:
    """Returns arrays shaped like those of the tree ``like``; a program with them raises InputError when lowered."""
    leaves, tree = jax.tree.flatten(like)
    zeros = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
    return tree.unflatten(_refused.bind(*zeros, message=message))
