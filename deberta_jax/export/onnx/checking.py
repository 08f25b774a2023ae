"""Checks an exported file: by the checker of ONNX, and by comparing its outputs in ONNX Runtime with the model's."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deberta_jax.errors import InputError
from deberta_jax.export.onnx.library import library
from deberta_jax.models import Model, spec_of_model

Arrays = dict[str, np.ndarray]

SHAPES = ((2, 17), (3, 33), (1, 5))
"""Numbers of rows and tokens of the batches that are compared."""


def session(file: Path) -> Any:
    """Opens a file in ONNX Runtime on the CPU."""
    runtime = library("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # its warnings are of no use to users
    return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def batches(model: Model) -> Iterator[Arrays]:
    """Yields random inputs of several shapes, the second one with padding on the right and the third on the left."""
    _, spec = spec_of_model(model)
    c, random = model.config, np.random.default_rng(0)
    for number, (rows, length) in enumerate(SHAPES):
        length = min(length, c.max_position_embeddings) if c.has_position_table else length
        shape = (rows, 2, length) if spec.model.reads_choices else (rows, length)
        ids = random.integers(0, c.vocab_size, shape)
        counts = random.integers(1, length + 1, shape[:-1])
        counts.flat[0] = length
        places = np.arange(length)
        real = (places < counts[..., None], places >= length - counts[..., None])[number == 2]
        real = np.ones(shape, bool) if number == 0 else real
        batch = {"input_ids": np.where(real, ids, c.pad_token_id), "attention_mask": real}
        if c.type_vocab_size > 0:
            batch["token_type_ids"] = random.integers(0, c.type_vocab_size, shape)
        yield {name: array.astype(np.int64) for name, array in batch.items()}


def check_file(file: Path) -> None:
    """Checks the structure of a file and the shapes of all its values by ONNX's own checker."""
    library("onnx.checker").check_model(str(file), full_check=True)


def largest_difference(file: Path, model: Model, params: Mapping[str, Any]) -> float:
    """Returns the largest difference between the outputs of a file in ONNX Runtime and those of the model.

    It is relative to the largest output of the model, where that is above 1.

    Raises:
      InputError: an output of the model or of the file is NaN or infinite.
    """
    opened = session(file)
    names = [output.name for output in opened.get_outputs()]
    run = jax.jit(lambda params, batch: model.apply({"params": params}, **batch))
    largest = 0.0
    for batch in batches(model):
        expected = run(params, {name: array.astype(np.int32) for name, array in batch.items()})
        for name, found in zip(names, opened.run(names, batch), strict=True):
            ours = np.asarray(getattr(expected, name), np.float32)
            if not np.isfinite(ours).all():
                raise InputError("the model's outputs are NaN or infinite, so an export cannot be compared with them")
            if not np.isfinite(found).all():
                raise InputError("the exported file gives NaN or infinity where the model does not; nothing is written")
            largest = max(largest, float(np.abs(found - ours).max() / max(1.0, np.abs(ours).max())))
    return largest
