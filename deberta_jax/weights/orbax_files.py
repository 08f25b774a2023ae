"""Reads Orbax checkpoints directly into shards, and describes the leaves to write; ``orbax_writer`` writes them.

The arrays are chunked along the layers and the hidden size, because they are sharded along these axes: a device then
reads only its own chunks. Orbax itself is not needed to read, and its import is slow.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from deberta_jax import storage
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError, brief, listed
from deberta_jax.models import all_parts
from deberta_jax.storage import AnyPath
from deberta_jax.weights import names as table
from deberta_jax.weights.source import Checkpoint, Tensor, check_count

PARAMS = "params"

_METADATA = "_METADATA"
_SMALLEST_CHUNK = 64 << 10
_LARGEST_BLOCK = 128 << 20

# Arrays may be compressed. A small directory must not describe terabytes of zeros in this way.
_MOST_EXPANDED, _ALWAYS_ALLOWED = 1000, 64 << 20

# What TensorStore raises for what is damaged, and Python for shapes that cannot be.
_DAMAGED = (ValueError, OSError, NotImplementedError, RuntimeError, OverflowError, MemoryError, IndexError)


@dataclasses.dataclass(frozen=True)
class PendingLeaf:
    """Describes a leaf to write."""

    shape: tuple[int, ...]
    dtype: np.dtype
    layered: bool
    """Whether the first axis counts layers."""
    width: int
    """The hidden size D of the model, along which chunks are split."""
    read: Callable[[int, int], np.ndarray]
    """Returns layers ``start`` to ``stop`` of the leaf, or all of a leaf without layers."""

    @property
    def size(self) -> int:
        """Returns the number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Returns the size in bytes."""
        return self.size * self.dtype.itemsize

    def chunks(self) -> list[int]:
        """Returns the shape of a chunk: one layer in up to 16 parts along the hidden size, each of at least 64 kB."""
        out = list(self.shape)
        if self.nbytes <= _SMALLEST_CHUNK:
            return out
        first = int(self.layered)
        if self.layered:
            out[0] = 1
        axes = range(first, len(out))
        wide = [a for a in axes if out[a] == self.width] or [max(axes, key=lambda a: out[a])]
        # The models shard the input axis of a matrix [D, D], and the output axis of a convolution [K, D, D].
        axis = wide[0 if len(axes) == 2 else -1]
        parts = min(16, math.prod(out) * self.dtype.itemsize // _SMALLEST_CHUNK)
        while parts > 1 and out[axis] % parts:
            parts -= 1
        out[axis] //= max(parts, 1)
        return out

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields blocks of consecutive layers of at most 128 MB, but at least one layer, with their indices."""
        if not self.layered:
            yield slice(None), self.read(0, 0)
            return
        step = max(1, _LARGEST_BLOCK * self.shape[0] // max(self.nbytes, 1))
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            yield slice(start, stop), self.read(start, stop)


def key_value_store(directory: AnyPath) -> str | dict[str, str]:
    """Returns TensorStore's key-value store of a directory.

    A local one is no URL, in which ``%`` and ``#`` would have a special meaning.
    """
    return (
        f"{directory}/"
        if storage.is_remote(directory)
        else {"driver": "file", "path": f"{Path(directory).absolute()}/"}
    )


def find_orbax(directory: AnyPath) -> AnyPath | None:
    """Finds the checkpoint in a directory.

    Returns:
      The directory itself, its ``params``, or the newest step of a training state; None if there is none of these.
    """
    for path in (directory, directory / PARAMS, directory / "state"):
        if (path / _METADATA).is_file():
            return path
        steps = [step for step in path.iterdir() if _is_step(step)] if path.is_dir() else []
        for step in sorted(steps, key=lambda step: int(step.name), reverse=True):
            for item in (step, *sorted(p for p in step.iterdir() if p.is_dir())):
                if (item / _METADATA).is_file() and _leaves_of(item):
                    return item
    return None


def _is_step(path: AnyPath) -> bool:
    """Returns whether a directory is that of a step of a training state. One in a bucket is marked when complete."""
    return path.name.isdecimal() and (isinstance(path, Path) or (path / "commit_success.txt").is_file())


def _leaves_of(directory: AnyPath) -> dict[str, dict[str, Any]]:
    """Returns TensorStore specs of the parameters by path: of all leaves, or of those below ``params``.

    Raises:
      InputError: the metadata is not Orbax's.
    """
    raw = storage.read_json_object(directory / _METADATA)
    zarr = "zarr3" if raw.get("use_zarr3") else "zarr"
    try:
        keys = [tuple(_component(k["key"]) for k in v["key_metadata"]) for v in raw["tree_metadata"].values()]
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{directory / _METADATA}: not the metadata of an Orbax checkpoint, or damaged") from None
    check_count(directory / _METADATA, len(keys))
    roots = {key[: key.index(mark)] for key in keys for mark in (table.ENCODER, "embeddings") if mark in key}
    prefixes = [root for root in roots if root == () or root[-1] == PARAMS]
    if not prefixes:
        return {}
    prefix = min(prefixes, key=len)
    leaves = {}
    for key in keys:
        if key[: len(prefix)] == prefix:
            name = ".".join(key)
            if not name.isprintable() or "/" in name or "\\" in name or name in ("", ".", ".."):
                raise InputError(f"{directory / _METADATA}: damaged: {brief(name)} is no name of a parameter")
            merged = {"driver": "ocdbt", "base": key_value_store(directory), "path": f"{name}/"}
            store = merged if raw.get("use_ocdbt") else key_value_store(directory / name)
            leaves["/".join(key[len(prefix) :])] = {"driver": zarr, "kvstore": store}
    return leaves


def _component(key: Any) -> str:
    """Returns one key of a path. Raises TypeError if it is neither text nor a number."""
    if not isinstance(key, str | int):
        raise TypeError
    return str(key)


class OrbaxArrays:
    """Reads the arrays of a checkpoint by path; each is opened when it is first used.

    Raises:
      InputError: the checkpoint has no parameters of a DeBERTa model.
    """

    def __init__(self, directory: AnyPath):
        self.directory = directory
        self._open: dict[str, ts.TensorStore] = {}
        self.specs = _leaves_of(directory)
        if not self.specs:
            raise InputError(f"{directory}: an Orbax checkpoint without parameters of a DeBERTa model")
        bare = not any(path.startswith(f"{table.ENCODER}/") for path in self.specs)
        if bare:
            self.specs = {f"{table.ENCODER}/{path}": spec for path, spec in self.specs.items()}

    def open(self, path: str) -> ts.TensorStore:
        """Opens the array of a leaf. Raises InputError if it is damaged."""
        if path not in self._open:
            try:
                array = ts.open(self.specs[path], read=True, open=True).result()
            except _DAMAGED as error:
                raise InputError(f"{self.directory}: damaged: {path} cannot be opened ({brief(error, 120)})") from None
            _check_array(self.directory, path, array)
            self._open[path] = array
        return self._open[path]

    def slice(self, path: str, layer: int | None) -> np.ndarray:
        """Reads one layer of a leaf, or all of it for None. Raises InputError if it is damaged."""
        array = self.open(path)
        return self._read(path, array if layer is None else array[layer])

    def read_sharded(self, path: str, dtype: np.dtype, sharding: jax.sharding.Sharding | None) -> jax.Array:
        """Reads a leaf onto its devices. Each process reads its own shards, each of them once.

        Args:
          path: path of the leaf.
          dtype: dtype of the result.
          sharding: sharding of the result; None is the first device.

        Raises:
          InputError: the array is damaged.
        """
        array = ts.cast(self.open(path), dtype)
        sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        reads: dict[Any, Any] = {}
        for index in sharding.addressable_devices_indices_map(tuple(array.shape)).values():
            reads.setdefault(_key(index), array[index or ()])
        values = dict(zip(reads, self._read_all(path, list(reads.values())), strict=True))
        return jax.make_array_from_callback(tuple(array.shape), sharding, lambda index: values[_key(index)])

    def _read(self, path: str, array: ts.TensorStore) -> np.ndarray:
        return self._read_all(path, [array])[0]

    def _read_all(self, path: str, arrays: list[ts.TensorStore]) -> list[np.ndarray]:
        pending = [array.read() for array in arrays]
        try:
            return [np.asarray(read.result()) for read in pending]
        except _DAMAGED as error:
            raise InputError(f"{self.directory}: damaged: {path} cannot be read ({brief(error, 120)})") from None


def _check_array(directory: AnyPath, path: str, array: ts.TensorStore) -> None:
    """Checks the shape and the chunks of an array, before any of it is read. Raises InputError if they cannot be."""
    shape = tuple(array.shape)
    chunk = array.chunk_layout.read_chunk.shape or shape
    plain = len(shape) <= 8 and all(0 <= length < 2**48 for length in shape)
    plain = plain and math.prod(length for length in shape if length) < 2**60
    if not plain or any((part or 0) > max(length, 1) for part, length in zip(chunk, shape, strict=True)):
        raise InputError(f"{directory}: damaged: {path} has shape {shape} in chunks of {chunk}")


def _check_total(directory: AnyPath, arrays: Mapping[str, ts.TensorStore]) -> None:
    """Checks that arrays are not far larger than the files that hold them. Raises InputError otherwise."""
    if not isinstance(directory, Path):
        return
    total = sum(math.prod(array.shape) * array.dtype.numpy_dtype.itemsize for array in arrays.values())
    stored = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    if total > _ALWAYS_ALLOWED + _MOST_EXPANDED * stored:
        raise InputError(f"{directory}: damaged: its arrays have {total} bytes, its files {stored}")


def _key(index: tuple[slice, ...] | None) -> tuple[tuple[Any, Any], ...]:
    """Returns a hashable form of an index."""
    return tuple((part.start, part.stop) for part in index or ())


def read_orbax(directory: AnyPath, config: DebertaConfig) -> Checkpoint:
    """Opens a checkpoint of this package under the names of torch tensors, so that it is handled like other files.

    Args:
      directory: the checkpoint.
      config: the architecture.

    Raises:
      InputError: the checkpoint is damaged, or has leaves that no DeBERTa model has.
    """
    arrays = OrbaxArrays(directory)
    opened = {path: arrays.open(path) for path in arrays.specs}
    _check_total(directory, opened)
    shapes = {path: tuple(array.shape) for path, array in opened.items()}
    present = {path.split("/", 1)[0] for path in shapes}
    parts = tuple(part for part in all_parts() if part in present)
    classifier = shapes.get("classifier/bias") or (config.num_labels,)
    sizes = table.sizes(config, classifier[0])
    tensors: dict[str, Tensor] = {}
    used = set()
    for row in table.table(_with_everything(config, shapes), parts):
        if not row.tree or not all(path in shapes for path in row.tree):
            continue
        used |= set(row.tree)
        dtype = np.dtype(opened[row.tree[0]].dtype.numpy_dtype)
        try:
            shape = _torch_shape(row, shapes, sizes)
        except _DAMAGED:
            raise InputError(f"{directory}: {listed(row.tree)} do not have the shapes of config.json") from None
        if row.layered and any(shapes[path][:1] != (config.num_hidden_layers,) for path in row.tree):
            raise InputError(f"{directory}: {listed(row.tree)} do not have the layers of config.json")
        for layer, name in enumerate(row.names(config)):
            read = _reader(arrays, row, layer if row.layered else None, sizes)
            tensors[name] = Tensor(name, shape, dtype, read)
    odd = sorted(set(shapes) - used)
    if odd:
        raise InputError(
            f"{directory}: {len(odd)} leaves are not a DeBERTa model's: {listed(odd, 50)}; "
            "import a head of your own with --plugin"
        )
    return Checkpoint(directory, (directory,), tensors, read_sharded=arrays.read_sharded)


def _with_everything(config: DebertaConfig, shapes: Mapping[str, Any]) -> DebertaConfig:
    """Returns a config with all optional leaves of the checkpoint: a position table belongs to a mask decoder."""
    if "deberta/embeddings/position_embeddings/embedding" in shapes and not config.has_position_table:
        return dataclasses.replace(config, legacy=False, mask_decoder=True)
    return config


def _torch_shape(row: table.Row, shapes: Mapping[str, tuple[int, ...]], sizes: table.Sizes) -> tuple[int, ...]:
    """Returns the shape of the torch tensor of a row, by converting arrays of the leaves' shapes without data."""
    probes = tuple(np.broadcast_to(np.zeros((), np.int8), shapes[path][int(row.layered) :]) for path in row.tree)
    return row.transform.to_torch(probes, sizes).shape


def _reader(arrays: OrbaxArrays, row: table.Row, layer: int | None, sizes: table.Sizes):
    """Returns a function that reads the leaves of a row and converts them to its torch tensor."""
    return lambda: row.transform.to_torch(tuple(arrays.slice(path, layer) for path in row.tree), sizes)
