"""Describes the inputs of all models, and checks the shapes of those given before anything is computed."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.errors import InputError, brief, did_you_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    AnyArray = jax.Array | NDArray[Any]
else:
    AnyArray = jax.Array | np.ndarray

Rngs = Mapping[str, jax.Array] | AnyArray | None
Flag = bool | AnyArray
"""A bool. Type checkers accept an array too, so that they accept ``model(params, **batch)`` with a dict of arrays."""


class Inputs(TypedDict, total=False):
    """Holds the keyword arguments of a call of a model. ``Model.__call__`` describes them, with their shapes."""

    attention_mask: AnyArray | None
    token_type_ids: AnyArray | None
    position_ids: AnyArray | None
    inputs_embeds: AnyArray | None
    segment_ids: AnyArray | None
    attention_bias: AnyArray | None
    positions: AnyArray | None
    deterministic: Flag
    output_hidden_states: Flag
    output_attentions: Flag


_ALWAYS = ("input_ids", *(name for name in Inputs.__annotations__ if name != "positions"))
_FLAGS = ("deterministic", "output_hidden_states", "output_attentions")
_OF_TOKENS = ("token_type_ids", "position_ids", "segment_ids")
_INTEGERS = ("input_ids", *_OF_TOKENS, "positions")
_OF_ENCODINGS = ("offsets", "offset_mapping", "special_tokens_mask", "overflow_to_sample_mapping", "word_ids")


def check_names(given: Mapping[str, Any], accepted: frozenset[str], model: str) -> None:
    """Checks the names of keyword arguments.

    Args:
      given: the arguments of a call.
      accepted: those that the model takes besides the arrays and flags that all models take.
      model: the name of the model's class.

    Raises:
      InputError: the model does not take an argument.
    """
    known = set(_ALWAYS) | accepted
    for name in given:
        if name in known or (name == "positions" and given[name] is None):
            continue
        if name in _OF_ENCODINGS:
            raise InputError(
                f"{name}: is no input of a model; leave it out, or pass input_ids, attention_mask and token_type_ids "
                "of the encoding by name"
            )
        advice = did_you_mean(name, known) or f"; it takes {', '.join(sorted(known))}"
        raise InputError(f"{brief(name)}: {model} takes no such input{advice}")


def check_arrays(inputs: Mapping[str, Any], *, choices: bool, width: int, vocabulary: int) -> dict[str, Any]:
    """Checks the shapes and dtypes of a call's arrays and converts those of NumPy.

    Args:
      inputs: all inputs by name.
      choices: the inputs have an axis of choices, [B,C,T].
      width: E, the size of embedding vectors.
      vocabulary: number of token ids; those in arrays of NumPy are compared with it.

    Returns:
      The inputs with JAX's arrays.

    Raises:
      InputError: neither or both of input_ids and inputs_embeds are given; something is no array; an array has not the
        shape that the token ids ask for, or no elements; or ids are not integers, or out of range.
    """
    for name, value in inputs.items():
        if isinstance(value, np.ndarray) and name in _INTEGERS and value.dtype.kind in "iu":
            _check_range(name, value, vocabulary)
    arrays = {name: _as_array(name, value) for name, value in inputs.items()}
    for name in _FLAGS:
        if not isinstance(inputs.get(name, False), bool | np.bool):
            raise InputError(f"{name} is a {type(inputs[name]).__name__}; give True or False, in jax.jit a constant")
    tokens = [name for name in ("input_ids", "inputs_embeds") if arrays.get(name) is not None]
    if len(tokens) != 1:
        raise InputError(
            f"{' and '.join(tokens) or 'no tokens'} given: give exactly one of input_ids and inputs_embeds"
        )
    (name,) = tokens
    axes = ("B", "C", "T") if choices and inputs.get("positions") is None else ("B", "T")
    _check_rank(name, arrays[name], axes)
    shape = arrays[name].shape[: len(axes)]
    if name == "inputs_embeds" and arrays[name].shape != (*shape, width):
        raise InputError(f"inputs_embeds is {_size(arrays[name].shape)}: the model takes {_size((*shape, width))}")
    for other, value in arrays.items():
        if value is None or other in (*tokens, *_FLAGS):
            continue
        if other in _OF_TOKENS and value.shape != shape:
            # Position ids of one row are those of all rows.
            if not (other == "position_ids" and value.shape == (1, *shape[1:])):
                raise InputError(
                    f"{other} is {_size(value.shape)}, {name} {_size(shape)}; give one value for each token"
                )
        elif other == "attention_mask" and value.shape not in (shape, (*shape, shape[-1])):
            whole = (*shape, shape[-1])
            raise InputError(
                f"attention_mask is {_size(value.shape)}, {name} {_size(shape)}; the mask must be {_size(shape)} or "
                f"{_size(whole)}"
            )
        elif other == "positions" and (value.ndim != 2 or value.shape[0] != shape[0]):
            raise InputError(f"positions is {_size(value.shape)}, {name} {_size(shape)}; give [{shape[0]},P]")
    for other in _INTEGERS:
        value = arrays.get(other)
        if value is not None and not jnp.issubdtype(value.dtype, jnp.integer):
            raise InputError(f"{other} has dtype {value.dtype}; ids are integers, such as int32")
    return arrays


def _as_array(name: str, value: Any) -> Any:
    own = name not in (*_ALWAYS, "positions")  # an input that one model class alone has
    if value is None or name in _FLAGS or own or isinstance(value, jax.Array):
        return value
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "biufV":  # V: bfloat16 and other numbers that NumPy does not know
            raise InputError(f"{name} has dtype {value.dtype}; give an array of numbers, in rows of one length")
        return jnp.asarray(value)
    if isinstance(value, (list, tuple)):
        raise InputError(
            f"{name} is a {type(value).__name__}; give an array: tokenize with padding=True, or call np.array(...) on "
            "rows of one length"
        )
    if not hasattr(value, "shape") or not hasattr(value, "dtype") or type(value).__module__.startswith("torch"):
        raise InputError(f"{name} is a {type(value).__name__}; give an array of JAX or NumPy")
    return value


def _check_range(name: str, ids: np.ndarray, vocabulary: int) -> None:
    """Raises InputError for numbers that a gather on the device would silently replace by others."""
    least = -1 if name == "positions" else 0
    most = vocabulary - 1 if name == "input_ids" else 2**31 - 1
    if ids.size and not least <= ids.min() <= ids.max() <= most:
        wrong = ids.min() if ids.min() < least else ids.max()
        raise InputError(f"{name} has the value {wrong}; give {least} to {most}")


def _check_rank(name: str, value: Any, axes: tuple[str, ...]) -> None:
    """Raises InputError if the tokens have not the axes that the model takes."""
    wanted = (*axes, "E") if name == "inputs_embeds" else axes
    if value.ndim == len(wanted):
        if 0 in value.shape:
            raise InputError(f"{name} is {_size(value.shape)}: give at least one row of at least one token")
        return
    advice = f"give [{','.join(wanted)}]"
    if value.ndim == len(wanted) - 1:
        missing = "choices" if "C" in axes and value.ndim > 1 else "rows"
        index = ":, None" if missing == "choices" else "None"
        advice += f"; for a single one add the axis of {missing}: {name}[{index}]"
    raise InputError(f"{name} is {_size(value.shape)}: {advice}")


def _size(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"
