"""Lists the implementations of attention by name, and takes those of other packages."""

import dataclasses
from collections.abc import Callable
from typing import Any

from deberta_jax.errors import InputError, brief, shown
from deberta_jax.ops.attention.inputs import AttentionInputs, check_array

Attend = Callable[[AttentionInputs], Any]


@dataclasses.dataclass(frozen=True)
class Implementation:
    """Describes an implementation.

    Attributes:
      load: imports the implementation and returns its function, from ``AttentionInputs`` to the context [B,T,N,H] in
        the dtype of ``value``; with whole scores to the context and the attention weights before dropout, float32
        [B,N,T,T].
      whole_scores: whether it holds the scores of all pairs [B,N,T,T] at once. Returned weights, and what changes
        scores, need that.
    """

    load: Callable[[], Attend]
    whole_scores: bool


def _reference() -> Attend:
    from deberta_jax.ops.attention.reference import reference_attention

    return reference_attention


def _xla() -> Attend:
    from deberta_jax.ops.attention.xla import xla_attention

    return xla_attention


def _blocked() -> Attend:
    from deberta_jax.ops.attention.cpu.blocked_attention import blocked_attention

    return blocked_attention


def _pallas() -> Attend:
    from deberta_jax.ops.attention.pallas.kernel_attention import pallas_attention

    return pallas_attention


BUILT_IN = {
    "reference": Implementation(_reference, whole_scores=True),
    "xla": Implementation(_xla, whole_scores=True),
    "blocked": Implementation(_blocked, whole_scores=False),
    "pallas": Implementation(_pallas, whole_scores=False),
}
IMPLEMENTATIONS = dict(BUILT_IN)
"""The implementations by name; ``register_attention`` adds to them."""

WHOLE_SCORES = tuple(name for name, implementation in BUILT_IN.items() if implementation.whole_scores)


def register_attention(name: str, attend: Attend, *, whole_scores: bool = False) -> None:
    """Makes a function available as an implementation of attention: ``attention=name`` of models selects it.

    It must compute what ``ops.attention.reference`` defines, and honours every field of its argument that may be set:
    masks, segments, dropout; with ``whole_scores`` also talking heads, biases and modifiers. ``attend_with_scores`` in
    the module of the definition does all of that for a function that computes scores alone. Nothing is registered in
    files: a process that uses the name registers it first, on the command line in a module named by ``--plugin``.

    Args:
      name: the new name. The function of a name of one's own may be replaced; programs that are compiled already keep
        the earlier one.
      attend: ``AttentionInputs -> context [B,T,N,H]`` in the dtype of ``value``; with ``whole_scores`` ``(context,
        weights)`` with the attention weights before dropout, float32 [B,N,T,T].
      whole_scores: whether the function returns weights, and reads the last four fields of its argument.

    Raises:
      InputError: the name is no identifier, or one of this package's.
    """
    if not isinstance(name, str):
        raise InputError(f"register_attention({shown(name)}): the first argument is the name, a str")
    if name in BUILT_IN or name == "auto" or not name.isidentifier():
        why = "is taken" if name in BUILT_IN or name == "auto" else "is no identifier"
        raise InputError(f"register_attention({brief(name)!r}): the name {why}; choose another")
    if not callable(attend):
        raise InputError(f"register_attention({name!r}): the second argument is the function that computes attention")
    IMPLEMENTATIONS[name] = Implementation(lambda: attend, whole_scores)


def split_result(name: str, result: Any) -> tuple[Any, Any]:
    """Returns the context and the weights that an implementation with whole scores returned, or raises InputError."""
    if not isinstance(result, tuple) or len(result) != 2:
        kind = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
        raise InputError(f"attention={name!r} returned {kind}; with whole_scores=True it returns (context, weights)")
    return result


def check_result(name: str, inputs: AttentionInputs, context: Any, weights: Any) -> None:
    """Raises InputError if an implementation returned something of another shape or dtype than it should."""
    batch, length, heads, _ = inputs.query.shape
    check_array(f"attention={name!r} returned a context", context, inputs.value.shape, inputs.value.dtype.name)
    if weights is not None:
        shape = (batch, heads, length, length)
        check_array(f"attention={name!r} returned weights", weights, shape, "float32")
