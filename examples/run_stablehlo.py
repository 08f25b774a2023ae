"""Run an exported model with JAX and NumPy alone: ``deberta-jax export MODEL DIR --to stablehlo``, then ``load(DIR)``.

Copy ``read_weights`` and ``load``: they need neither deberta_jax nor Flax nor safetensors.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

Arrays = dict[str, Any]
DTYPES: Arrays = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16)}


def read_weights(file: Path) -> Arrays:
    """Reads a safetensors file: eight bytes with the size of a JSON header, the header, and the values."""
    raw, weights = np.memmap(file, np.uint8, "r"), Arrays()
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    for name, entry in json.loads(raw[8:start].tobytes()).items():
        if name != "__metadata__":
            values = raw[start:][slice(*entry["data_offsets"])].view(DTYPES[entry["dtype"]])
            weights[name] = jnp.asarray(values.reshape(entry["shape"]))
    return weights


def load(directory: str | Path) -> Callable[[Arrays], Arrays]:
    """Returns a function from inputs by name, of any batch size and length, to outputs of the padded length."""
    folder = Path(directory) / "stablehlo"
    manifest = json.loads((folder / "programs.json").read_text())
    files = {int(length): bytearray((folder / file).read_bytes()) for length, file in manifest["programs"].items()}
    programs: dict[int, Any] = {length: jax.jit(export.deserialize(file).call) for length, file in files.items()}
    weights = read_weights(folder / manifest["weights"])

    def run(inputs: Arrays) -> Arrays:
        *outer, length = inputs["input_ids"].shape
        padded = min(size for size in programs if size >= length)
        fill = [(0, 0)] * len(outer) + [(0, padded - length)]
        return programs[padded](weights, {name: np.pad(ids, fill).astype(np.int32) for name, ids in inputs.items()})

    return run


if __name__ == "__main__":
    import deberta_jax

    config = deberta_jax.DebertaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    model = deberta_jax.DebertaForSequenceClassification(config.replace(num_labels=3, position_biased_input=False))
    params = deberta_jax.init_params(model, jax.random.key(0))
    ids = np.full((2, 11), 7, np.int32)
    with tempfile.TemporaryDirectory() as folder:
        done = deberta_jax.export_stablehlo((model, params), f"{folder}/exported", lengths=(16, 32))
        logits = load(f"{folder}/exported")({"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"]
    difference = np.abs(np.asarray(logits) - model(params, ids).logits).max()
    print(f"programs for {done.lengths} tokens, logits {logits.shape}, equal: {difference < 1e-6}")
