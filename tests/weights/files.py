"""Small checkpoints by hand: torch's names, values drawn by name, files laid out without this package or torch."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.weights import inspect, names
from tests.cases import BASE, draw_weights

SMALL = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}


def raw_config(base: str, **options: Any) -> dict[str, Any]:
    return {**BASE[base], **SMALL, **options}


def inspect_strictly(path: Path) -> None:
    """Raises what the command line of ``inspect`` ends with, after it has printed what is in the file."""
    problem = inspect(path).problem
    if problem:
        raise InputError(problem)


def state_of(base: str, parts: tuple[str, ...] = (), labels: int = 3, **options: Any) -> dict[str, np.ndarray]:
    """Weights of a small model by transformers' names."""
    config = DebertaConfig.from_hf(raw_config(base, **options))
    sizes = names.sizes(config, labels)
    rows = names.table(config, parts)
    return draw_weights({name: row.torch_shape(sizes) for row in rows for name in row.names(config)})


def same(tree: Any, other: Any) -> bool:
    """Whether two trees have the same structure and equal arrays."""
    return jax.tree.structure(tree) == jax.tree.structure(other) and jax.tree.all(
        jax.tree.map(lambda a, b: np.array_equal(a, b), tree, other)
    )


def positions() -> dict[str, np.ndarray]:
    return draw_weights({"deberta.embeddings.position_embeddings.weight": (16, 8)})


def discriminator(base: str = "v3") -> dict[str, np.ndarray]:
    return state_of(base, ("lm_predictions", "mask_predictions")) | positions()


class Name:
    """Pickles as the name of a function of torch, which need not be there."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


class Call:
    def __init__(self, function: Name, *arguments: Any):
        self.function, self.arguments = function, arguments


class _Storage:
    def __init__(self, kind: str, key: str, numel: int):
        self.entry = ("storage", Name("torch", kind), key, "cpu", numel)


class _Pickler(pickle._Pickler):
    """Writes names and calls without importing what they name."""

    def persistent_id(self, obj):
        return obj.entry if isinstance(obj, _Storage) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Name):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(tuple(obj.arguments))
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def dump(value: Any, protocol: int = 2) -> bytes:
    out = io.BytesIO()
    _Pickler(out, protocol).dump(value)
    return out.getvalue()


_KINDS = {"float32": "FloatStorage", "float16": "HalfStorage", "float64": "DoubleStorage", "int64": "LongStorage"}


def tensor(key: str, array: np.ndarray, *, numel=None, offset=0, shape=None, stride=None) -> Call:
    """torch's description of one tensor, with any field forged."""
    storage = _Storage(_KINDS[str(array.dtype)], key, array.size if numel is None else numel)
    shape = array.shape if shape is None else shape
    stride = tuple(s // array.itemsize for s in array.strides) if stride is None else stride
    rebuild = Name("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, storage, offset, shape, stride, False, OrderedDict())


def zip_bytes(program: bytes, storages: Mapping[str, bytes], *, compression=zipfile.ZIP_STORED, extra=()) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", b"little")
        for key, raw in storages.items():
            archive.writestr(f"archive/data/{key}", raw)
        for name, raw in extra:
            archive.writestr(name, raw)
    return out.getvalue()


def torch_legacy(program: bytes, storages: Mapping[str, np.ndarray]) -> bytes:
    """A file as torch wrote it before 1.6: five pickles, then for each storage its count and its numbers."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = [dump(0x1950A86A20F9469CFC6C), dump(1001), dump(system), program, dump(list(storages))]
    numbers = [array.size.to_bytes(8, "little") + array.tobytes() for array in storages.values()]
    return b"".join([*head, *numbers])


def torch_zip(state: Mapping[str, np.ndarray], **entries: Any) -> bytes:
    """A whole .bin as torch lays it out; ``entries`` stand beside the tensors."""
    keys = {name: str(i) for i, name in enumerate(state)}
    described: dict[str, Any] = {name: tensor(keys[name], array) for name, array in state.items()}
    return zip_bytes(dump(described | entries), {keys[name]: array.tobytes() for name, array in state.items()})
