"""Reads PyTorch's two file formats without PyTorch: the zip archive (since 1.6) and the older sequence of pickles.

Both describe the tensors in a pickle and store the numbers outside it. The file is mapped into memory, and the bytes of
a tensor are read on request. In the zip format each storage has a checksum, which is verified at that time.
"""

import math
import mmap
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deberta_jax.errors import InputError, brief, listed
from deberta_jax.pickles import archive, machine
from deberta_jax.pickles.archive import ArchiveError
from deberta_jax.pickles.plain import as_json
from deberta_jax.pickles.stack import MAX_BYTES
from deberta_jax.pickles.values import PickleError, Placeholder, Result, Storage, StoredTensor
from deberta_jax.storage import mapped, mapped_array
from deberta_jax.weights.source import BFLOAT16, MOST_TENSORS, Checkpoint, Tensor, check_count
from deberta_jax.weights.wrappers import holds_encoder

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")

# Tensors may share a storage, as tied weights do. A small file must not describe terabytes in this way.
_MOST_SHARED = 64
_STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}

# Largest number of instructions of the programs beside that of the tensors in the older format: one that only says what
# the file is, and those that are a few numbers.
_FIRST, _FEW = 100_000, 1000
_LONGEST_TENSOR_NAME = 400

Bytes = Callable[[Storage], np.ndarray]


def read_zip(path: Path) -> Checkpoint:
    """Opens a zip archive, the default format of ``torch.save``.

    Raises:
      InputError: the archive is damaged or compressed, or its pickle is refused.
    """
    try:
        with mapped(path) as view:
            entries = archive.read_entries(view)
            root = archive.find_root(entries)
            order = entries.get(f"{root}byteorder")
            if order is not None and archive.read_small(view, order, "byteorder", 100) != b"little":
                raise InputError(f"{path}: written on a big-endian machine, or damaged; convert it there")
            program = archive.read_small(view, entries[f"{root}data.pkl"], "data.pkl", MAX_BYTES)
    except ArchiveError as error:
        raise InputError(f"{path}: {error}") from None
    value = _run(path, program).value
    del program
    data = mapped_array(path, np.dtype(np.uint8))
    seen: dict[str, np.ndarray] = {}

    def storage_bytes(storage: Storage) -> np.ndarray:
        if storage.key not in seen:
            entry = entries[f"{root}data/{storage.key}"]
            raw = np.asarray(data[entry.start : entry.start + entry.size])
            try:
                archive.check_sum(raw.data, entry, f"data/{storage.key}")
            except ArchiveError as error:
                raise InputError(f"{path}: {error}") from None
            seen[storage.key] = raw
        return seen[storage.key]

    def available(storage: Storage) -> int:
        entry = entries.get(f"{root}data/{storage.key}")
        if entry is None:
            raise InputError(f"{path}: damaged: storage {storage.key[:40]!r} is missing")
        return entry.size

    return _checkpoint(path, value, available, storage_bytes)


def read_legacy(path: Path) -> Checkpoint:
    """Opens the format that ``torch.save`` wrote before version 1.6.

    Raises:
      InputError: the file is damaged, or one of its pickles is refused.
    """
    with mapped(path) as view:
        first = _run(path, view, most=_FIRST)
        if first.value != _LEGACY_MAGIC:
            raise InputError(f"{path}: a pickle, but not one that torch.save wrote")
        protocol, start, _ = _run(path, view, first.end, most=_FEW)
        system, start, _ = _run(path, view, start, most=_FEW)
        if protocol != _LEGACY_PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
            raise InputError(f"{path}: of an unknown protocol, or written on a big-endian machine")
        value, start, storages = _run(path, view, start)
        keys, start, _ = _run(path, view, start, most=MOST_TENSORS * 4)
    data = mapped_array(path, np.dtype(np.uint8))
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise InputError(f"{path}: damaged: no list of storages")
    kinds = {storage.key: storage for storage in storages}
    where: dict[str, tuple[int, int]] = {}
    for key in keys:
        # The element size of a storage is known only from its tensors. Without it, the next storage cannot be located.
        count = int.from_bytes(data[start : start + 8].tobytes(), "little") if start + 8 <= data.size else -1
        if key not in kinds or key in where or count != kinds[key].numel:
            raise InputError(f"{path}: damaged: storage {key[:40]!r} is not as the tensors describe it")
        size = count * kinds[key].dtype.itemsize
        if start + 8 + size > data.size:
            raise InputError(f"{path}: damaged: it ends inside storage {key[:40]!r}")
        where[key] = (start + 8, size)
        start += 8 + size

    def available(storage: Storage) -> int:
        if storage.key not in where:
            raise InputError(f"{path}: damaged: storage {storage.key[:40]!r} is missing")
        return where[storage.key][1]

    def storage_bytes(storage: Storage) -> np.ndarray:
        begin, size = where[storage.key]
        return np.asarray(data[begin : begin + size])

    return _checkpoint(path, value, available, storage_bytes)


def _run(path: Path, data: bytes | mmap.mmap, start: int = 0, *, most: int | None = None) -> Result:
    """Returns what the pickle at an offset builds. Raises InputError if it is refused."""
    try:
        return machine.run(data, start, storages=_STORAGES, most=most)
    except PickleError as error:
        raise InputError(f"{path}: refused: {error}") from None


def _checkpoint(path: Path, value: Any, available: Callable[[Storage], int], storage_bytes: Bytes) -> Checkpoint:
    """Makes a checkpoint of the value of a pickle: a state dict, or a training state that contains one.

    Args:
      path: the file, for messages.
      value: the value of the pickle.
      available: returns the number of bytes that the file has for a storage.
      storage_bytes: returns the bytes of a storage.
    """
    state, left = _state_dict(path, value)
    check_count(path, sum(isinstance(stored, StoredTensor) for stored in state.values()))
    tensors: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    total = 0
    for name, stored in state.items():
        if not isinstance(stored, StoredTensor):
            left += [str(name)] if name != "config" else []
            continue
        if not isinstance(name, str) or not re.fullmatch(rf"[\w.-]{{1,{_LONGEST_TENSOR_NAME}}}", name):
            raise InputError(f"{path}: damaged: {brief(name)!r} is no name of a tensor")
        size = sizes[stored.storage.key] = available(stored.storage)
        _check_layout(path, name, stored, size)
        total += math.prod(stored.shape) * stored.storage.dtype.itemsize
        tensors[name] = Tensor(name, stored.shape, stored.storage.dtype, _reader(stored, storage_bytes))
    if total > _MOST_SHARED * sum(sizes.values()):
        raise InputError(f"{path}: damaged: its tensors have {total} bytes, their storages {sum(sizes.values())}")
    config = state.get("config")
    try:
        config = as_json(config) if isinstance(config, Mapping) else None
    except PickleError as error:
        left.append(f"config ({error})")
        config = None
    return Checkpoint(path, (path,), tensors, config, tuple(left))


def _state_dict(path: Path, value: Any) -> tuple[dict[Any, Any], list[str]]:
    """Finds the model in the value of a pickle.

    Returns:
      The dictionary of the model's tensors, and the names of all other entries on the path to it.

    Raises:
      InputError: there is no dictionary of tensors, or there are several models and none has a usual name.
    """
    if isinstance(value, Placeholder):
        raise InputError(f"{path}: holds a whole object, a {brief(value.kind.name)}; save model.state_dict()")
    found = _dictionaries(value)
    known: dict[str, bool] = {}  # the same names occur again and again, such as in the state of an optimizer
    models = [keys for keys, state in found.items() if any(_is_of_encoder(name, known) for name in state)]
    usual = [keys for keys in models or found if not keys or keys[-1] in _WRAPPERS]
    rank = lambda keys: (not keys, len(keys), [_WRAPPERS.index(k) if k in _WRAPPERS else len(_WRAPPERS) for k in keys])
    if len(models) == 1:
        (chosen,) = models
    elif usual:
        chosen = min(usual, key=rank)
    elif models:
        names = listed(".".join(map(brief, keys)) for keys in models)
        raise InputError(f"{path}: holds several models ({names}); save the state_dict of one alone")
    else:
        raise InputError(f"{path}: holds no dictionary of tensors; save model.state_dict()")
    left: list[str] = []
    beside = value
    for key in chosen:
        left += [str(name) for name in beside if name is not key]
        beside = beside[key]
    return beside, left


def _is_of_encoder(name: Any, known: dict[str, bool]) -> bool:
    """Returns whether a key is the name of an encoder's tensor; ``known`` keeps the answers."""
    if not isinstance(name, str) or len(name) > _LONGEST_TENSOR_NAME:
        return False
    if name not in known:
        known[name] = holds_encoder(name)
    return known[name]


def _dictionaries(value: Any) -> dict[tuple[Any, ...], dict[Any, Any]]:
    """Returns all dictionaries that hold a tensor, by the keys that lead to them, down to four levels."""
    out: dict[tuple[Any, ...], dict[Any, Any]] = {}
    todo: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    seen: set[int] = set()
    for keys, item in todo:  # the loop extends the list
        if not isinstance(item, dict) or id(item) in seen:
            continue
        seen.add(id(item))
        if any(isinstance(v, StoredTensor) for v in item.values()):
            out[keys] = item
        if len(keys) < 4:
            todo += [((*keys, key), inner) for key, inner in item.items() if isinstance(inner, dict)]
    return out


def _check_layout(path: Path, name: str, tensor: StoredTensor, size: int) -> None:
    """Checks that a tensor's elements are distinct and inside its storage of ``size`` bytes.

    Raises:
      InputError: they overlap or exceed the storage, or the numbers are invalid.
    """
    plain = len(tensor.shape) == len(tensor.stride) <= 8 and all(
        type(v) is int and 0 <= v < 2**48 for v in (*tensor.shape, *tensor.stride, tensor.offset)
    )
    # An empty tensor may have other axes that are long, but numpy cannot describe all of these.
    plain = plain and math.prod(length for length in tensor.shape if length) < 2**60
    itemsize = tensor.storage.dtype.itemsize
    if not plain or tensor.storage.numel * itemsize != size:
        raise InputError(f"{path}: damaged: {name} has a shape, stride, offset or storage that cannot be")
    reach = 1
    for stride, length in sorted(zip(tensor.stride, tensor.shape, strict=True)):
        if length > 1:
            if stride < reach:
                raise InputError(f"{path}: damaged: elements of {name} overlap")
            reach = stride * (length - 1) + reach
    if 0 not in tensor.shape and (tensor.offset + reach) * itemsize > size:
        raise InputError(f"{path}: damaged: {name} reaches beyond its storage")


def _reader(tensor: StoredTensor, storage_bytes: Bytes) -> Callable[[], np.ndarray]:
    """Returns a function that returns a tensor as a read-only view of its storage."""

    def read() -> np.ndarray:
        if 0 in tensor.shape:
            return np.zeros(tensor.shape, tensor.storage.dtype)
        base = storage_bytes(tensor.storage).view(tensor.storage.dtype)[tensor.offset :]
        strides = [stride * base.itemsize for stride in tensor.stride]
        return np.lib.stride_tricks.as_strided(base, tensor.shape, strides, writeable=False)

    return read
