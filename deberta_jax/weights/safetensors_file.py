"""Reads and writes safetensors files: eight bytes of header length, a JSON header, then the bytes of the tensors.

Files are mapped for reading and written tensor by tensor, so at most one tensor is in memory. The safetensors library
needs all tensors in memory to write a file.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deberta_jax import storage
from deberta_jax.errors import InputError, brief, shown
from deberta_jax.weights.source import BFLOAT16, MOST_TENSORS, Checkpoint, Tensor, check_count

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

# Largest header in bytes. A header of 210 tensors has 20 kB; parsed, a hostile one takes thirty times its size.
MAX_HEADER = 8 << 20
_LONGEST_NAME = 1000


def read_safetensors(path: Path) -> Checkpoint:
    """Opens one file.

    Raises:
      InputError: the file is malformed, or its tensors do not fill it exactly, one after another.
    """
    size = path.stat().st_size
    header, start = _header(path, size)
    if not isinstance(header, dict):
        raise InputError(f"{path}: damaged: the header is no JSON object")
    header.pop("__metadata__", None)
    check_count(path, len(header))
    entries = [(name, *_parse_entry(path, name, entry)) for name, entry in header.items()]
    end = 0
    for name, _, _, begin, stop in sorted(entries, key=lambda entry: (entry[3], entry[4])):
        if begin != end:
            raise InputError(
                f"{path}: damaged: the bytes of {brief(name, 200)} start at {begin}, the tensor before it ends at {end}"
            )
        end = stop
    if start + end != size:
        raise InputError(f"{path}: damaged: its header describes {start + end} bytes, the file has {size}")
    data = storage.mapped_array(path, np.dtype(np.uint8))

    def reader(begin: int, stop: int, dtype: np.dtype, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
        return lambda: np.asarray(data[start + begin : start + stop]).view(dtype).reshape(shape)

    tensors = {
        name: Tensor(name, shape, dtype, reader(begin, stop, dtype, shape))
        for name, dtype, shape, begin, stop in entries
    }
    return Checkpoint(path, (path,), tensors)


def _header(path: Path, size: int) -> tuple[Any, int]:
    """Returns the parsed header of a file of ``size`` bytes and the offset at which the tensors begin."""
    with storage.opened(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise InputError(f"{path}: damaged: a header of {length} bytes does not fit a file of {size}")
        raw = file.read(length)
    # Before so many entries are parsed. Braces in the metadata are allowed for.
    check_count(path, max(raw.count(b'"data_offsets"'), raw.count(b"{") - 4 * MOST_TENSORS))
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique), 8 + length
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged: the header is not valid JSON ({brief(error, 120)})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a dictionary of a JSON object. Raises ValueError if a key occurs twice."""
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name occurs twice")
    return out


def _parse_entry(path: Path, name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Returns dtype, shape, first byte and end byte of a header entry. Raises InputError if they do not agree."""
    if len(name) > _LONGEST_NAME:
        raise InputError(f"{path}: damaged: {brief(name)!r} is no name of a tensor")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{path}: damaged: {brief(name, 200)!r} lacks dtype, shape or data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise InputError(f"{path}: {brief(name, 200)} has dtype {shown(code)}; readable are {', '.join(_DTYPES)}")
    if not (_counts(shape, 8) and _counts(offsets, 2) and len(offsets) == 2):
        raise InputError(f"{path}: damaged: {brief(name, 200)} has shape {shown(shape)}, data_offsets {shown(offsets)}")
    # numpy cannot describe all empty tensors whose other axes are long.
    if math.prod(length for length in shape if length) >= 2**60:
        raise InputError(f"{path}: damaged: {brief(name, 200)} has shape {shown(shape)}")
    dtype = _DTYPES[code]
    begin, stop = offsets
    if stop - begin != math.prod(shape) * dtype.itemsize:
        raise InputError(f"{path}: damaged: {brief(name, 200)} of shape {shape} has {stop - begin} bytes")
    return dtype, tuple(shape), begin, stop


def _counts(values: Any, most: int) -> bool:
    """Returns whether a JSON value is a list of at most ``most`` non-negative integers of reasonable size."""
    return isinstance(values, list) and len(values) <= most and all(type(v) is int and 0 <= v < 2**48 for v in values)


class Pending(NamedTuple):
    """Describes a tensor to write. ``produce`` returns its values and is called once, when they are written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    produce: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Returns the size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(path: Path, tensors: Sequence[Pending], metadata: Mapping[str, str]) -> None:
    """Writes one file atomically, with one tensor at a time in memory. Raises OSError if it cannot be written."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    # Larger dtypes come first, so every tensor is aligned to its item size.
    ordered = sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.name))
    for tensor in ordered:
        end = offset + tensor.nbytes
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with storage.writing(path) as file:
        file.write(len(raw).to_bytes(8, "little"))
        file.write(raw)
        for tensor in ordered:
            array = tensor.produce()
            if array.shape != tensor.shape or array.dtype != tensor.dtype:
                raise AssertionError(f"{tensor.name}: {array.shape} {array.dtype} is not what the header says")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
