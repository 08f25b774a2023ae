"""Run an exported model with JAX and NumPy alone: ``deberta-jax export MODEL DIR --to stablehlo``, then ``load(DIR)``.

Copy ``read_weights`` and ``load``: they need neither deberta_jax nor Flax nor safetensors.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

Arrays = dict[str, Any]
"""Arrays by name."""

DTYPES: Arrays = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16)}


def read_weights(file: Path) -> Arrays:
    """Reads a safetensors file: eight bytes with the size of a JSON header, the header, and the values."""
    raw = np.memmap(file, np.uint8, "r")
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    weights: Arrays = {}
    for name, entry in json.loads(raw[8:start].tobytes()).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            values = raw[start + begin : start + end].view(DTYPES[entry["dtype"]])
            weights[name] = jnp.asarray(values.reshape(entry["shape"]))
    return weights


def load(directory: str) -> Callable[[Arrays], Arrays]:
    """Returns a function from inputs by name, of any batch size and length, to outputs by name."""
    folder = Path(directory) / "stablehlo"
    manifest = json.loads((folder / "programs.json").read_text())
    programs: dict[int, Any] = {}
    for length, file in manifest["programs"].items():
        program = export.deserialize(bytearray((folder / file).read_bytes()))
        programs[int(length)] = jax.jit(program.call)
    weights = read_weights(folder / manifest["weights"])

    def run(inputs: Arrays) -> Arrays:
        *outer, length = inputs["input_ids"].shape
        padded = min(size for size in programs if size >= length)
        fill = [(0, 0)] * len(outer) + [(0, padded - length)]
        arrays = {name: np.pad(values, fill).astype(np.int32) for name, values in inputs.items()}
        outputs = {name: np.asarray(value) for name, value in programs[padded](weights, arrays).items()}
        # Outputs for each token have an axis of the padded length.
        per_token = {name for name, value in outputs.items() if value.shape[: len(outer) + 1] == (*outer, padded)}
        return {name: value[:, :length] if name in per_token else value for name, value in outputs.items()}

    return run


def main() -> None:
    """Exports a small untrained classifier, and runs it."""
    import tempfile

    import deberta_jax

    config = deberta_jax.DebertaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    model = deberta_jax.DebertaForSequenceClassification(config.replace(num_labels=3, position_biased_input=False))
    params = deberta_jax.init_params(model, jax.random.key(0))
    ids = np.random.default_rng(0).integers(1, 100, (2, 11), np.int32)
    with tempfile.TemporaryDirectory() as folder:
        done = deberta_jax.export_stablehlo((model, params), f"{folder}/exported", lengths=(16, 32))
        run = load(str(done.directory))
        outputs = run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    difference = np.abs(outputs["logits"] - model(params, ids).logits).max()
    print(f"programs for {done.lengths} tokens, logits {outputs['logits'].shape}, equal: {difference < 1e-6}")


if __name__ == "__main__":
    main()
