"""Saves parameters as a model directory that PyTorch's transformers and this package both load."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils

from deberta_jax import storage
from deberta_jax.config import V1, DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.models import HEADS, Model, spec_of_model
from deberta_jax.ops.quantization import QuantizedArray, is_compressed
from deberta_jax.ops.quantized_matrix import QuantizedMatrix
from deberta_jax.storage import AnyPath
from deberta_jax.weights import names as table
from deberta_jax.weights.gathering import on_first_process
from deberta_jax.weights.output import check_free, staged_model
from deberta_jax.weights.quantization import Quantizer, matrix_of_row
from deberta_jax.weights.quantized_tensors import stored_tensors
from deberta_jax.weights.safetensors_file import Pending, write_safetensors
from deberta_jax.weights.trees import leaves_by_path
from deberta_jax.weights.values import as_dtype, contiguous, is_finite

TensorNames = Literal["hf", "microsoft"]

_METADATA = {"format": "pt"}


@runtime_checkable
class Leaves(Protocol):
    """Gives the leaves of a tree by path, from parameters in memory or from a file that is read when needed."""

    def dtype(self, path: str) -> np.dtype:
        """Returns the dtype of a leaf."""
        ...

    def slice(self, path: str, layer: int | None) -> np.ndarray:
        """Returns a leaf, or one layer of it."""
        ...


class TreeLeaves:
    """Gives the leaves of a parameter tree, copied to the host one at a time."""

    def __init__(self, tree: Mapping[str, Any]):
        self._leaves = leaves_by_path(tree, is_compressed)
        self._held: dict[str, np.ndarray] = {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of all leaves by path."""
        return {path: tuple(leaf.shape) for path, leaf in self._leaves.items()}

    def dtype(self, path: str) -> np.dtype:
        return np.dtype(self._leaves[path].dtype)

    def quantized(self, row: table.Row, layer: int | None, sizes: Mapping[str, int]) -> QuantizedMatrix | None:
        """Returns the torch matrix of a row whose leaves are quantized, of one layer if given; None for other rows."""
        leaves = [self._leaves[path] for path in row.tree]
        if not leaves or not all(isinstance(leaf, QuantizedArray) for leaf in leaves):
            return None
        return matrix_of_row(row, leaves, layer, sizes)

    def slice(self, path: str, layer: int | None) -> np.ndarray:
        if is_compressed(self._leaves[path]):
            leaf = self._leaves[path] if layer is None else jax.tree.map(lambda a: a[layer], self._leaves[path])
            return np.asarray(leaf.dequantize())
        if path not in self._held:
            if len(self._held) == 3:  # v1's query, key and value: no tensor of a checkpoint needs more leaves
                self._held.clear()
            self._held[path] = np.asarray(self._leaves[path])
        return self._held[path] if layer is None else self._held[path][layer]


def torch_tensors(
    config: DebertaConfig,
    parts: Sequence[str],
    labels: int,
    leaves: Leaves,
    dtype: np.dtype | None,
    layout: TensorNames,
    *,
    bare: bool,
    broken: list[str],
    progress: Callable[[str], None] = lambda name: None,
    quantizer: Quantizer | None = None,
) -> list[Pending]:
    """Returns the tensors of a checkpoint; each is computed when it is written.

    Args:
      labels: number of rows of the classifier.
      leaves: where the values come from.
      dtype: dtype of the tensors; None keeps that of each leaf.
      bare: names have no prefix ``deberta.``, as in transformers for an encoder without a head.
      broken: the names of tensors with NaN or infinity are appended as they are written.
      progress: is called with each name as the tensor is written.
      quantizer: quantizes some of the tensors, at once; None: none.
    """
    sizes = table.sizes(config, labels)
    out = []
    for row in table.table(config, parts, layout):
        kind = dtype or leaves.dtype(row.tree[0] if row.tree else table.WORD_EMBEDDINGS)
        for layer, name in enumerate(row.names(config)):
            stored_name = name.removeprefix("deberta.") if bare else name
            at = layer if row.layered else None
            compute = _producer(row, at, sizes, leaves, kind)
            matrix = None if quantizer is None else quantizer(row, at, stored_name, compute)
            if matrix is not None:
                out += stored_tensors(stored_name, matrix)
                progress(stored_name)
                continue
            produce = _checked(compute, stored_name, broken, progress)
            out.append(Pending(stored_name, row.torch_shape(sizes), kind, produce))
    return out


def _producer(
    row: table.Row, layer: int | None, sizes: Mapping[str, int], leaves: Leaves, dtype: np.dtype
) -> Callable[[], np.ndarray]:
    """Returns a function that computes a row's tensor, of one layer if ``layer`` is given."""

    def compute() -> np.ndarray:
        parts = tuple(leaves.slice(path, layer) for path in row.tree)
        return contiguous(row.transform.to_torch(parts, sizes), dtype)

    return compute


def _checked(
    compute: Callable[[], np.ndarray], name: str, broken: list[str], progress: Callable[[str], None]
) -> Callable[[], np.ndarray]:
    """Returns a function that computes a tensor, notes in ``broken`` if it is not finite, and reports progress."""

    def produce() -> np.ndarray:
        array = compute()
        if not is_finite(array):
            broken.append(name)
        progress(name)
        return array

    return produce


def write_weights(directory: Path, tensors: Sequence[Pending], max_shard_size: str | int) -> None:
    """Writes ``model.safetensors``, or several files of at most that size with an index.

    Raises:
      InputError: ``max_shard_size`` is no size.
    """
    limit = parse_size(max_shard_size)
    shards: list[list[Pending]] = [[]]
    free = limit
    for tensor in tensors:
        if tensor.nbytes > free and shards[-1]:
            shards.append([])
            free = limit
        shards[-1].append(tensor)
        free -= tensor.nbytes
    if len(shards) == 1:
        write_safetensors(directory / "model.safetensors", tensors, _METADATA)
        return
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(directory / name, shard, _METADATA)
        weight_map |= {tensor.name: name for tensor in shard}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors)}, "weight_map": weight_map}
    storage.write_text(directory / "model.safetensors.index.json", json_text(index))


def parse_size(size: str | int) -> int:
    """Returns a number of bytes, given as a number or as a text such as ``5GB``. Raises InputError for others."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", str(size).strip(), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise InputError(f"max_shard_size {size!r} is no size; write 5GB or 200MB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " "))


def json_text(value: Any) -> str:
    """Returns a value as JSON. Lone surrogates, which UTF-8 cannot encode, are written as escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def hf_config(
    config: DebertaConfig, parts: Sequence[str], labels: int, dtype: np.dtype, known: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the contents of config.json.

    Args:
      parts, labels: as for ``torch_tensors``.
      dtype: dtype of the weights, which the file names.
      known: the value of ``architectures``; if empty, the class of transformers that loads these parts.
    """
    out = config.to_hf()
    prefix = "Deberta" if config.model_type == V1 else "DebertaV2"
    ends = (spec.transformers for spec in HEADS.values() if spec.parts and not spec.missing_parts(parts))
    task = next((end for end in ends if end), "Model")
    if task == "ForSequenceClassification" and labels == 1 and config.num_labels != 1:
        # transformers has no multiple choice for v1; sequence classification has the same tensors.
        task = "ForMultipleChoice" if config.model_type != V1 else task
        names = ["LABEL_0"] if config.model_type == V1 else list(config.id2label)
        out |= {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
    return out | {"architectures": list(known) or [prefix + task], "dtype": dtype.name}


def save_pretrained(
    directory: str | AnyPath,
    model: Model,
    params: Mapping[str, Any],
    tokenizer: Any = None,
    *,
    dtype: Any = None,
    max_shard_size: str | int = "5GB",
    layout: TensorNames = "hf",
    overwrite: bool = False,
    dequantize: bool = False,
) -> None:
    """Writes config.json, the weights as safetensors, and the tokenizer's files.

    transformers loads the directory without missing or unexpected keys. A new directory is complete when it appears: it
    is written under another name and renamed. In an existing model directory each file is replaced by a rename;
    config.json is removed first and written last, so that an interrupted write never leaves a mixture that loads. With
    several processes all must call; the first one writes.

    Args:
      directory: a new or empty directory, or one that holds a model; local, or the URL of one in a bucket.
      model: a model of any head; its config is written.
      params: its parameters, on any devices. Quantized ones are written as they are, as bitsandbytes does.
      tokenizer: an object with ``save(directory)``.
      dtype: dtype of the file; None keeps that of the parameters.
      max_shard_size: largest file of weights, in bytes or as a text such as ``5GB``; larger ones are split.
      layout: ``hf``; or ``microsoft``, which names tensors as Microsoft's code does.
      overwrite: also write into a directory that holds files other than a model's; they are kept.
      dequantize: write quantized parameters as floats.

    Raises:
      InputError: the directory holds other files, the parameters do not belong to the model, or ``max_shard_size`` is
        no size.
      RunAgainError: a bucket cannot be reached now.
    """
    target = storage.as_path(directory)
    check_free(target, overwrite=overwrite)
    head, spec = spec_of_model(model)
    tree = {table.ENCODER: params} if head == "encoder" else params
    parts, labels = spec.parts_in(model.config), spec.num_outputs(model.config)
    check_parameters(model, tree)
    leaves = TreeLeaves(on_first_process(tree))
    kind = None if dtype is None else as_dtype(dtype)
    sizes, bare = table.sizes(model.config, labels), head == "encoder" and layout == "hf"
    quantizer = Quantizer(lambda row, layer, name, compute: None if dequantize else leaves.quantized(row, layer, sizes))
    tensors = torch_tensors(
        model.config, parts, labels, leaves, kind, layout, bare=bare, broken=[], quantizer=quantizer
    )
    if jax.process_index() == 0:
        with staged_model(target) as stage:
            write_weights(stage, tensors, max_shard_size)
            if tokenizer is not None:
                tokenizer.save(stage)
            widest = kind or leaves.dtype(table.WORD_EMBEDDINGS)
            config = hf_config(model.config, parts, labels, widest) | quantizer.config()
            storage.write_text(stage / "config.json", json_text(config))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"save_pretrained {target}")


def check_parameters(model: Model, tree: Mapping[str, Any]) -> None:
    """Checks that a model's parameters can be saved: each has a row in the table of tensors.

    Args:
      tree: the parameters, or their shapes; the encoder's under ``deberta``.

    Raises:
      InputError: a parameter that is missing, unknown or of another shape.
    """
    config, shapes = model.config, TreeLeaves(tree).shapes
    head, spec = spec_of_model(model)
    if spec.named_labels and not spec.classifier:
        raise InputError(f"head {head!r}: its HeadSpec has named_labels and must name their tensor (classifier)")
    sizes = table.sizes(config, spec.num_outputs(config))
    expected = {}
    for row in table.table(config, spec.parts_in(config)):
        for path, shape in zip(row.tree, row.leaf_shapes(sizes), strict=True):
            expected[path] = (config.num_hidden_layers, *shape) if row.layered else shape
    wrong = [p for p in sorted(expected.keys() | shapes.keys()) if expected.get(p) != shapes.get(p)]
    if wrong:
        parts = ", ".join(spec.parts)
        problems = ", ".join(f"{p} is {shapes.get(p, 'missing')}, expected {expected.get(p, 'none')}" for p in wrong)
        raise InputError(
            f"head {head!r}: the parameters do not fit its parts {parts}: {problems}; names of built-in parts, such as "
            "classifier, pooler or proj, stand for those layers: choose another name for another layer"
        )
