"""Numbers on their way: casting, and looking for values that are none."""

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


def copy_cast(out: np.ndarray, view: np.ndarray) -> None:
    """``out[...] = view``, cast. A transposed view is walked in blocks of 128 of its rows, which is twice as fast."""
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
    """The array in C order and ``dtype``; itself where it already is both."""
    if view.dtype == dtype and view.flags.c_contiguous:
        return view
    out = np.empty(view.shape, dtype)
    copy_cast(out, view)
    return out


def read_leaf(plan: Plan, path: str, dtype: np.dtype | None) -> np.ndarray:
    """One filled leaf with its layer axis, in ``dtype`` or, for None, in that of the file."""
    row = plan.fills[path][0]
    layers = plan.config.num_hidden_layers if row.layered else 0
    return read_layers(plan, path, 0, layers, dtype or plan.dtype(path))


def read_layers(plan: Plan, path: str, start: int, stop: int, dtype: np.dtype) -> np.ndarray:
    """Layers ``start`` to ``stop`` of one filled leaf, or all of a leaf that has none."""
    row = plan.fills[path][0]
    shape = plan.shapes[path]
    out = np.empty((stop - start, *shape[1:]) if row.layered else shape, dtype)
    if row.layered:
        for layer in range(start, stop):
            copy_cast(out[layer - start], plan.slice(path, layer))
    else:
        copy_cast(out, plan.slice(path, None))
    return out


def broken_note(broken: list[str]) -> str:
    return f"NaN or infinity in {', '.join(broken)}; the file is damaged, or the dtype too narrow for its values"
