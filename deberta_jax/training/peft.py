"""Saves LoRA's updates as an adapter of the ``peft`` library: adapter_config.json and adapter_model.safetensors."""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from deberta_jax import storage
from deberta_jax.models import Model, spec_of_model
from deberta_jax.training.distributed import is_writer
from deberta_jax.training.lora import Lora
from deberta_jax.weights.names import ENCODER, Row, sizes, table
from deberta_jax.weights.safetensors_file import Pending, write_safetensors

_log = logging.getLogger(__name__)


def save_adapter(
    directory: storage.AnyPath, model: Model, params: Mapping[str, Any], lora: Lora, base_model: str
) -> None:
    """Writes a peft adapter. With several processes all must call.

    Logs a message and writes nothing if a kernel with an update is part of a larger matrix in PyTorch, as query, key
    and value of v1 models are.

    Args:
      params: the parameters of the run, ``{"base", "lora"}``.
      base_model: directory or hub id of the model that was fine-tuned.
    """
    _, spec = spec_of_model(model)
    rows = table(model.config, spec.parts_in(model.config))
    of_leaf = {leaf: row for row in rows for leaf in row.tree}
    shared = [path for path in lora.kernels if len(of_leaf[path].tree) > 1]
    if shared:
        _log.info(
            "no adapter for peft: %s is one matrix with others in PyTorch; the merged model is written", shared[0]
        )
        return
    tensors = _updates(params, lora, of_leaf) | _head(params, model, rows)
    if not is_writer():
        return
    pending = [Pending(name, a.shape, a.dtype, lambda a=a: a) for name, a in tensors.items()]
    # The pattern contains the names in front of a module: "output.dense" must not match "attention.output.dense".
    modules = sorted({of_leaf[path].torch.removesuffix(".weight").partition("{i}.")[2] for path in lora.kernels})
    config = {
        "peft_type": "LORA",
        "task_type": spec.peft_task,
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "fan_in_fan_out": False,
        "target_modules": rf".*\.layer\.\d+\.({'|'.join(name.replace('.', chr(92) + '.') for name in modules)})",
        "modules_to_save": list(spec.parts_in(model.config)),
    }
    with storage.staged(directory, last="adapter_config.json") as stage:
        write_safetensors(stage / "adapter_model.safetensors", pending, {"format": "pt"})
        storage.write_json(stage / "adapter_config.json", config)
        storage.write_checksums(stage)


def _updates(params: Mapping[str, Any], lora: Lora, of_leaf: Mapping[str, Row]) -> dict[str, np.ndarray]:
    """Returns the updates as PyTorch tensors [rank, inputs] and [outputs, rank], by their names in peft's files."""
    out = {}
    for path, kernel in lora.kernels.items():
        update = {name: host(value) for name, value in params["lora"][path.replace("/", ".")].items()}
        for i in range(kernel.layers or 1):
            layer = {name: value if kernel.layers is None else value[i] for name, value in update.items()}
            name = f"base_model.model.{of_leaf[path].torch.format(i=i).removesuffix('.weight')}"
            out[f"{name}.lora_A.weight"] = np.ascontiguousarray(layer["a"].T)
            out[f"{name}.lora_B.weight"] = np.ascontiguousarray(layer["b"].T)
    return out


def _head(params: Mapping[str, Any], model: Model, rows: tuple[Row, ...]) -> dict[str, np.ndarray]:
    """Returns the parameters of the head as PyTorch tensors, by their names in peft's files."""
    shapes = sizes(model.config, spec_of_model(model)[1].num_outputs(model.config))
    out = {}
    for row in rows:
        if row.tree and not row.tree[0].startswith(f"{ENCODER}/"):
            leaves = []
            for path in row.tree:
                leaf: Any = params["base"]
                for key in path.split("/"):
                    leaf = leaf[key]
                leaves.append(host(leaf))
            out[f"base_model.model.{row.torch}"] = np.ascontiguousarray(row.transform.to_torch(tuple(leaves), shapes))
    return out


def host(array: jax.Array) -> np.ndarray:
    """Returns an array's values as a numpy array, gathered from all processes if it is distributed."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
