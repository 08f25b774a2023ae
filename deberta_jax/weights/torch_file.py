"""Reads PyTorch's two file formats without PyTorch: the zip archive (since 1.6) and the older sequence of pickles.

Both describe the tensors in a pickle and store the numbers outside it. The file is mapped into memory, and the bytes of
a tensor are read on request. In the zip format each storage has a checksum, which is verified at that time.
"""

import io
import itertools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deberta_jax.errors import InputError, brief, listed
from deberta_jax.storage import mapped, mapped_array
from deberta_jax.weights import pickle_machine
from deberta_jax.weights.pickle_machine import PickleError, Placeholder, Storage, StoredTensor
from deberta_jax.weights.source import Checkpoint, Tensor
from deberta_jax.weights.wrappers import holds_encoder

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")

Bytes = Callable[[Storage], np.ndarray]


class Entry(NamedTuple):
    """Holds the offset, the size in bytes and the CRC-32 of a file inside an archive."""

    start: int
    size: int
    crc: int


def read_zip(path: Path) -> Checkpoint:
    """Opens a zip archive, the default format of ``torch.save``.

    Raises:
      InputError: the archive is damaged or compressed, or its pickle is refused.
    """
    data = mapped_array(path, np.dtype(np.uint8))
    entries = _entries(path, data)
    programs = [name for name in entries if name.endswith("/data.pkl")]
    if len(programs) != 1 or f"{programs[0].removesuffix('data.pkl')}constants.pkl" in entries:
        raise InputError(f"{path}: a zip archive, but not one of weights; save model.state_dict() with torch.save")
    root = programs[0].removesuffix("data.pkl")
    order = entries.get(f"{root}byteorder")
    if order is not None and _checked(path, data, order, "byteorder").tobytes() != b"little":
        raise InputError(f"{path}: written on a big-endian machine, or damaged; convert it there")
    if entries[programs[0]].size > pickle_machine.MAX_BYTES:
        raise InputError(f"{path}: its pickle has {entries[programs[0]].size} bytes, too many for a file of weights")
    value = _run(path, io.BytesIO(_checked(path, data, entries[programs[0]], "data.pkl").tobytes()))
    seen: dict[str, np.ndarray] = {}

    def storage_bytes(storage: Storage) -> np.ndarray:
        if storage.key not in seen:
            seen[storage.key] = _checked(path, data, entries[f"{root}data/{storage.key}"], f"data/{storage.key}")
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
    with mapped(path) as stream:
        if _run(path, stream) != _LEGACY_MAGIC:
            raise InputError(f"{path}: a pickle, but not one that torch.save wrote")
        protocol, system = _run(path, stream), _run(path, stream)
        if protocol != _LEGACY_PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
            raise InputError(f"{path}: of an unknown protocol, or written on a big-endian machine")
        value, keys = _run(path, stream), _run(path, stream)
        start = stream.tell()
    data = mapped_array(path, np.dtype(np.uint8))
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise InputError(f"{path}: damaged: no list of storages")
    kinds = {storage.key: storage for storage in _all_storages(value)}
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


def _entries(path: Path, data: np.ndarray) -> dict[str, Entry]:
    """Returns the entries of an archive by name.

    Raises:
      InputError: an entry is compressed, outside the file, overlaps another, or has a name that leaves the archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        ValueError,
        OSError,
        OverflowError,
        struct.error,
        EOFError,
    ) as error:
        raise InputError(f"{path}: damaged zip archive ({' '.join(str(error).split())[:80]})") from None
    out: dict[str, Entry] = {}
    extents = []
    for info in infos:
        name = info.filename
        if name.startswith("/") or "\\" in name or ".." in name.split("/") or not name.isprintable():
            raise InputError(f"{path}: entry {name[:60]!r} escapes the archive; refused")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise InputError(f"{path}: entry {name[:60]!r} is compressed, which torch.save never does; refused")
        begin = info.header_offset
        if not 0 <= begin <= data.size - _LOCAL_HEADER.size:
            raise InputError(f"{path}: damaged: entry {name[:60]!r} lies outside the file")
        header = _LOCAL_HEADER.unpack(data[begin : begin + _LOCAL_HEADER.size].tobytes())
        start = begin + _LOCAL_HEADER.size + header[9] + header[10]
        if header[0] != b"PK\x03\x04" or start + info.file_size > data.size or name in out:
            raise InputError(f"{path}: damaged: entry {name[:60]!r} has no header, exceeds the file, or occurs twice")
        out[name] = Entry(start, info.file_size, info.CRC)
        extents.append((begin, start + info.file_size, name))
    extents.sort()
    for (_, end, name), (begin, _, _) in itertools.pairwise(extents):
        if begin < end:
            raise InputError(f"{path}: damaged: entry {name[:60]!r} overlaps the next")
    return out


def _checked(path: Path, data: np.ndarray, entry: Entry, name: str) -> np.ndarray:
    """Returns the bytes of an entry. Raises InputError if their checksum is wrong."""
    raw = np.asarray(data[entry.start : entry.start + entry.size])
    if zlib.crc32(raw.data) != entry.crc:
        raise InputError(f"{path}: damaged: the checksum of {name} is wrong; download or save the file again")
    return raw


def _run(path: Path, stream: Any) -> Any:
    """Returns the value of the pickle at the stream's position. Raises InputError if it is refused."""
    try:
        return pickle_machine.run(stream)
    except PickleError as error:
        raise InputError(f"{path}: refused: {error}") from None


def _all_storages(value: Any) -> list[Storage]:
    """Returns all storages in nested containers and placeholders."""
    out, todo, seen = [], [value], set()
    while todo:
        item = todo.pop()
        if isinstance(item, StoredTensor):
            out.append(item.storage)
        elif isinstance(item, Storage):
            out.append(item)
        elif isinstance(item, dict | list | tuple | Placeholder) and id(item) not in seen:
            seen.add(id(item))
            if isinstance(item, Placeholder):
                todo += item.parts
            else:
                todo += item.values() if isinstance(item, dict) else item
    return out


def _checkpoint(path: Path, value: Any, available: Callable[[Storage], int], storage_bytes: Bytes) -> Checkpoint:
    """Makes a checkpoint of the value of a pickle: a state dict, or a training state that contains one.

    Args:
      path: the file, for messages.
      value: the value of the pickle.
      available: returns the number of bytes that the file has for a storage.
      storage_bytes: returns the bytes of a storage.
    """
    state, left = _state_dict(path, value)
    tensors: dict[str, Tensor] = {}
    for name, stored in state.items():
        if not isinstance(stored, StoredTensor):
            left += [str(name)] if name != "config" else []
            continue
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,400}", name):
            raise InputError(f"{path}: damaged: {brief(name)!r} is no name of a tensor")
        _check_layout(path, name, stored, available(stored.storage))
        tensors[name] = Tensor(name, stored.shape, stored.storage.dtype, _reader(stored, storage_bytes))
    config = state.get("config")
    return Checkpoint(path, (path,), tensors, config if isinstance(config, Mapping) else None, tuple(left))


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
    models = [keys for keys, state in found.items() if any(holds_encoder(name) for name in state)]
    usual = [keys for keys in models or found if not keys or keys[-1] in _WRAPPERS]
    rank = lambda keys: (not keys, len(keys), [_WRAPPERS.index(k) if k in _WRAPPERS else len(_WRAPPERS) for k in keys])
    if len(models) == 1:
        (chosen,) = models
    elif usual:
        chosen = min(usual, key=rank)
    elif models:
        names = listed(".".join(map(str, keys)) for keys in models)
        raise InputError(f"{path}: holds several models ({names}); save the state_dict of one alone")
    else:
        raise InputError(f"{path}: holds no dictionary of tensors; save model.state_dict()")
    left: list[str] = []
    beside = value
    for key in chosen:
        left += [str(name) for name in beside if name != key]
        beside = beside[key]
    return beside, left


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
    numbers = (*tensor.shape, *tensor.stride, tensor.offset)
    plain = all(type(v) is int and 0 <= v < 2**48 for v in numbers) and len(tensor.shape) == len(tensor.stride) <= 8
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
