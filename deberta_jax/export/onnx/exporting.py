"""Exports a model to a directory with an ONNX file, the config and the tokenizer."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deberta_jax import storage
from deberta_jax.errors import InputError, check_choice
from deberta_jax.export.onnx.building import LARGEST_FILE, build
from deberta_jax.export.onnx.checking import check_file, largest_difference
from deberta_jax.export.onnx.heads import HEAD_GRAPHS
from deberta_jax.export.onnx.library import library
from deberta_jax.export.onnx.quantization import quantize
from deberta_jax.export.sources import Given, check_new, export_directory, open_exportable
from deberta_jax.models import HEADS, Model

DTYPES = ("float32", "float16", "int8")
"""The choices of ``dtype``."""

TOLERANCES: dict[str, float] = {"float32": 1e-4, "float16": 0.05, "int8": float("inf")}
"""The largest difference with which a file is written, relative to the largest output."""


@dataclasses.dataclass(frozen=True)
class OnnxExport:
    """Describes an exported model.

    Attributes:
      directory: where it was written.
      head: the head.
      dtype: as for ``export_onnx``.
      nbytes: size of the ONNX file, and of the file of weights beside it if there is one.
      difference: the largest difference between outputs of the file and of the model on random inputs, relative to the
        largest output.
    """

    directory: storage.AnyPath
    head: str
    dtype: str
    nbytes: int
    difference: float


def export_onnx(
    source: Given,
    destination: str | Path,
    *,
    head: str | None = None,
    dtype: str = "float32",
    keep_embeddings: bool = False,
    tokenizer: Any = None,
    revision: str | None = None,
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
) -> OnnxExport:
    """Writes a model as ONNX: ``onnx/model.onnx`` beside config.json and the tokenizer's files.

    One file serves every batch size and length. Inputs and outputs have the names that Optimum uses. Inputs are
    ``input_ids``, ``attention_mask`` and, for models with token types, ``token_type_ids``: int64 [B,T], or [B,C,T] for
    multiple choice. Outputs are the fields of the model's output in float32, such as ``logits``. Weights above 2 GB are
    in ``onnx/model.onnx_data``.

    Before the directory appears, the file is checked by ONNX's checker, run in ONNX Runtime for several shapes, and
    compared with the model.

    Args:
      source: a model directory, file or hub id, as for ``from_pretrained``; or a model and its parameters.
      destination: a new directory.
      head: the head; None: the one that config.json names in ``architectures`` or that the weights are of, or the
        model's.
      dtype: ``float32``; ``float16``, in which softmax and LayerNorm stay float32; or ``int8``, in which products with
        weights have 8 bits, and word embeddings have 8 bits and a scale for each row.
      keep_embeddings: for ``int8``, keep the word embeddings in float32.
      tokenizer: an object with ``save(directory)``, or the directory or hub id of one; None: that of the source.
      revision, ignore, base_model: as for ``from_pretrained``.

    Returns:
      The size of the file and its difference from the model.

    Raises:
      InputError: the destination has contents; the source cannot be loaded; its head or something else about it cannot
        be exported; onnx or onnxruntime is not installed; or the file does not compute what the model does.
    """
    check_choice("dtype", dtype, DTYPES)
    if keep_embeddings and dtype != "int8":
        raise InputError(f"keep_embeddings is for dtype int8; with {dtype} the embeddings have the dtype of the others")
    for name in ("onnx", "onnxruntime"):
        library(name)
    target = storage.as_path(destination)
    check_new(target)
    exported = open_exportable(
        source,
        head,
        tokenizer,
        revision=revision,
        ignore=ignore,
        base_model=base_model,
        heads=[name for name in HEAD_GRAPHS if name in HEADS],
        into="ONNX",
    )
    with export_directory(target, exported, "float16" if dtype == "float16" else "float32") as stage:
        size, difference = _write(stage / "onnx", exported.model, exported.params, dtype, keep_embeddings)
        if difference > TOLERANCES[dtype]:
            raise InputError(
                f"the {dtype} file differs from the model by {difference:.2g} of the largest output, more than "
                f"{TOLERANCES[dtype]:g}; nothing is written"
            )
    return OnnxExport(target, exported.head, dtype, size, difference)


def _write(
    folder: Path, model: Model, params: Mapping[str, Any], dtype: str, keep_embeddings: bool
) -> tuple[int, float]:
    """Writes and checks the file. Returns the size of all files, and the largest difference from the model."""
    storage.make_directory(folder)
    file = folder / "model.onnx"
    compute = np.float16 if dtype == "float16" else np.float32
    built = build(model, params, compute, int8_embeddings=dtype == "int8" and not keep_embeddings)
    if dtype == "int8":
        with storage.scratch() as scratch:
            built.write(scratch / file.name)
            quantize(scratch / file.name, file, external=built.nbytes > 3 * LARGEST_FILE)
    else:
        built.write(file)
    check_file(file)
    return sum(path.stat().st_size for path in folder.iterdir()), largest_difference(file, model, params)
