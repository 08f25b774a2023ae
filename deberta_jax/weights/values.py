"""Reads and casts the values of tensors, and checks them for NaN and infinity."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from deberta_jax.errors import InputError, brief
from deberta_jax.weights.account import LoadPlan
from deberta_jax.weights.source import BFLOAT16

DTYPES = {"f32": np.dtype(np.float32), "bf16": BFLOAT16, "f16": np.dtype(np.float16)}

# A float is NaN or infinite exactly if all bits of its exponent are set.
_EXPONENT = {
    np.dtype(np.float16): (np.uint16, 0x7C00),
    BFLOAT16: (np.uint16, 0x7F80),
    np.dtype(np.float32): (np.uint32, 0x7F800000),
    np.dtype(np.float64): (np.uint64, 0x7FF0000000000000),
}
_BLOCK = 1 << 18
_MOST_SHOWN = 10


def as_dtype(dtype) -> np.dtype:
    """Converts ``jnp.bfloat16``, ``"bfloat16"``, ``"bf16"`` or a numpy dtype to a numpy dtype.

    Raises:
      InputError: weights cannot have this dtype.
    """
    found = DTYPES.get(dtype) if isinstance(dtype, str) else None
    if found is None:
        try:
            found = np.dtype(jnp.dtype(dtype))
        except TypeError:
            found = None
    if found is None or found not in _EXPONENT:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    return found


def is_finite(array: np.ndarray) -> bool:
    """Returns whether an array has neither NaN nor infinity. Works in blocks, so it allocates little memory."""
    word, exponent = _EXPONENT[array.dtype]
    flat = array.reshape(-1).view(word)
    exponent = word(exponent)
    return all(
        int(np.max(flat[start : start + _BLOCK] & exponent)) != exponent for start in range(0, flat.size, _BLOCK)
    )


def copy_cast(out: np.ndarray, view: np.ndarray) -> None:
    """Copies ``view`` into ``out`` and casts it. A transposed view is copied in blocks of 128 rows, which is faster."""
    with np.errstate(over="ignore", invalid="ignore"):
        if view.ndim < 2 or view.size == 0 or view.flags.c_contiguous:
            out[...] = view
            return
        slow, fast = int(np.argmax(view.strides)), int(np.argmin(view.strides))
        step = max(1, 128 * view.shape[slow] * view.shape[fast] // view.size)
        for start in range(0, view.shape[slow], step):
            block = (slice(None),) * slow + (slice(start, start + step),)
            out[block] = view[block]


def contiguous(view: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns an array in C order and ``dtype``; without a copy if it already has both."""
    if view.dtype == dtype and view.flags.c_contiguous:
        return view
    out = np.empty(view.shape, dtype)
    copy_cast(out, view)
    return out


def read_leaf(plan: LoadPlan, path: str, dtype: np.dtype | None) -> np.ndarray:
    """Reads a leaf of a plan with all its layers.

    Args:
      plan: the plan, which names the tensors of the leaf.
      path: path of the leaf.
      dtype: dtype of the result; None is that of the file.
    """
    return read_part(plan, path, (), dtype or plan.dtype(path))


def read_part(plan: LoadPlan, path: str, index: Sequence[slice], dtype: np.dtype) -> np.ndarray:
    """Reads a part of a leaf of a plan. Only the part takes memory where the file can be mapped.

    Args:
      plan, path: as for ``read_leaf``.
      index: a slice with step 1 for each of the first axes, layers included; the other axes are read whole.
      dtype: dtype of the result.
    """
    row, shape = plan.fills[path][0], plan.shapes[path]
    whole = (*index, *(slice(None),) * (len(shape) - len(index)))
    ranges = [range(size)[part] for size, part in zip(shape, whole, strict=True)]
    out = np.empty([len(positions) for positions in ranges], dtype)
    if row.layered:
        for at, layer in enumerate(ranges[0]):
            copy_cast(out[at], plan.slice(path, layer)[whole[1:]])
    else:
        copy_cast(out, plan.slice(path, None)[whole])
    return out


def broken_tensors(plan: LoadPlan, broken: Sequence[str]) -> list[str]:
    """Returns the names of the tensors with NaN or infinity that fill leaves, given the paths of the leaves.

    If none has any, because the dtype of the leaves is too narrow, the names of all are returned.
    """
    tensors = {tensor.name: tensor for path in broken for tensor in plan.fills[path][2]}
    found = [name for name, tensor in tensors.items() if not is_finite(np.ascontiguousarray(tensor.read()))]
    return found or list(tensors)


def broken_note(broken: list[str]) -> str:
    """Returns the message for leaves or tensors with NaN or infinity, given their paths or names."""
    shown = ", ".join(brief(name, 200) for name in broken[:_MOST_SHOWN])
    more = f" and {len(broken) - _MOST_SHOWN} more" if len(broken) > _MOST_SHOWN else ""
    return f"NaN or infinity in {shown}{more}; the file is damaged, or the dtype too narrow for its values"
