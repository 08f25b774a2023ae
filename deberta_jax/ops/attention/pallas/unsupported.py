"""Defines an operation that no platform supports: lowering a program that contains it raises an error with the reason.

The platform of a program is known only when it is lowered, since it may be compiled ahead of time for a machine that
is not here. That is therefore where ``attention='pallas'`` can refuse a platform without a kernel. A primitive with its
own lowering rule, as in JAX's guide to primitives, is the one public way to run code at that point.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters.mlir import register_lowering

from deberta_jax.errors import InputError

_unsupported = Primitive("unsupported")
_unsupported.multiple_results = True


@_unsupported.def_abstract_eval
def _(*arrays: Any, message: str) -> list[Any]:
    return list(arrays)


def _refuse(context: Any, *arrays: Any, message: str) -> Any:
    raise InputError(message)


register_lowering(_unsupported, _refuse)
_unsupported.def_impl(functools.partial(_refuse, None))


def unsupported(message: str, like: Any) -> Any:
    """Returns arrays shaped like those of the tree ``like``; lowering a program that has them raises InputError."""
    leaves, tree = jax.tree.flatten(like)
    zeros = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
    return tree.unflatten(_unsupported.bind(*zeros, message=message))
