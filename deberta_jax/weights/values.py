"""Numbers on their way: casting, and looking for values that are none."""

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from deberta_jax.errors import InputError
from deberta_jax.weights.account import Plan
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


def as_dtype(dtype) -> np.dtype:
    """A numpy dtype from ``jnp.bfloat16``, ``"bfloat16"``, ``"bf16"`` or a numpy dtype.

    Raises:
      InputError: a dtype in which no weights are kept.
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
    """No NaN and no infinity; looks at blocks so that nothing of the array's size is allocated."""
    word, exponent = _EXPONENT[array.dtype]
    flat = array.reshape(-1).view(word)
    exponent = word(exponent)
    return all(
        int(np.max(flat[start : start + _BLOCK] & exponent)) != exponent for start in range(0, flat.size, _BLOCK)
    )


def cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in ``dtype``, rounded to nearest even; itself where it already is."""
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtype, copy=False)


class Leaf(NamedTuple):
    path: str
    value: np.ndarray


def read_leaf(plan: Plan, path: str, dtype: np.dtype | None) -> np.ndarray:
    """One filled leaf with its layer axis, in ``dtype`` or, for None, in that of the file."""
    row, place, tensors = plan.fills[path]
    out = np.empty(plan.shapes[path], dtype or plan.dtype(path))
    with np.errstate(over="ignore", invalid="ignore"):
        for i, tensor in enumerate(tensors):
            out[i if row.layered else ...] = row.transform.to_tree(tensor.read(), plan.sizes)[place]
    return out


def read_leaves(plan: Plan, dtype: np.dtype | None, broken: list[str]) -> Iterator[Leaf]:
    """Every filled leaf in turn; the paths of those with a NaN or an infinity are added to ``broken``."""
    for path in plan.fills:
        value = read_leaf(plan, path, dtype)
        if not is_finite(value):
            broken.append(path)
        yield Leaf(path, value)


def broken_note(broken: list[str]) -> str:
    return f"NaN or infinity in {', '.join(broken)}; the file is damaged, or the dtype too narrow for its values"
