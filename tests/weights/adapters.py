"""Small LoRA adapters as peft writes them, and the merged weights by the formula in numpy."""

import json

import numpy as np
import safetensors.numpy

from tests.cases import draw_weights

PARTS = ("pooler", "classifier")
SETTINGS = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 6, "modules_to_save": list(PARTS)}


def updates(state, modules, rank=2):
    """A and B of each module, drawn by name."""
    out = {}
    for module in modules:
        rows, columns = state[f"{module}.weight"].shape
        drawn = draw_weights({f"{module}.A": (rank, columns), f"{module}.B": (rows, rank)})
        out[module] = drawn[f"{module}.A"], drawn[f"{module}.B"]
    return out


def merged(state, found, scale):
    out = dict(state)
    for module, (a, b) in found.items():
        out[f"{module}.weight"] = (state[f"{module}.weight"] + scale * (b.astype(np.float64) @ a)).astype(np.float32)
    return out


def adapter_in(tmp_path, found, head, base, name="adapter", **settings):
    directory = tmp_path / name
    directory.mkdir()
    tensors = dict(head)
    for module, (a, b) in found.items():
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    tensors = {f"base_model.model.{name}": value for name, value in tensors.items()}
    safetensors.numpy.save_file(tensors, directory / "adapter_model.safetensors")
    contents = {**SETTINGS, "base_model_name_or_path": str(base), **settings}
    (directory / "adapter_config.json").write_text(json.dumps(contents))
    return directory
