"""Take weights with names of another code base: look, rename, convert through every format, verify, load."""

import os
import tempfile
from pathlib import Path

import jax
import numpy as np

from deberta_jax import PRESETS, DebertaForSequenceClassification, from_pretrained, init_params, save_pretrained
from deberta_jax.weights import convert, inspect, verify

RULES = [r"^net\.blocks\.(\d+)\.=deberta.encoder.layer.\1.", r"\.att\.=.attention.self."]


def write_foreign_model(directory: str) -> None:
    """Writes a small model whose tensors have names of their own."""
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = DebertaForSequenceClassification(PRESETS["deberta-v3-base"].replace(vocab_size=300, **tiny))
    save_pretrained(directory, model, init_params(model, jax.random.key(0)))
    path = Path(f"{directory}/model.safetensors")
    content = path.read_bytes()  # the length of the header in 8 bytes, the header in JSON, and the numbers
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].replace(b"deberta.encoder.layer.", b"net.blocks.").replace(b".attention.self.", b".att.")
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
    os.remove(f"{directory}/checksums.json")


def main(directory: str) -> None:
    write_foreign_model(f"{directory}/foreign")
    found = inspect(f"{directory}/foreign")
    rows = [row.name for row in found.report.tensors if row.name.startswith("net.")]
    print(f"{len(rows)} tensors of {len(found.report.tensors)} have names of their own, such as {rows[0]}")

    report = convert(f"{directory}/foreign", f"{directory}/hf", to="hf", rename=RULES)
    print(f"renamed: {report.count('loaded')} tensors loaded, {report.count('dropped')} dropped")
    convert(f"{directory}/hf", f"{directory}/orbax", to="orbax")
    convert(f"{directory}/orbax", f"{directory}/bf16", to="hf", dtype="bf16", layout="microsoft")
    convert(f"{directory}/orbax", f"{directory}/again", to="hf")
    exact, half = verify(f"{directory}/again", f"{directory}/hf"), verify(f"{directory}/bf16", f"{directory}/hf")
    print(f"same weights: {max(exact.differences.values()):.1f}; bf16 passes at {half.tolerance}: {half.passed}")

    model, params = from_pretrained(f"{directory}/again", head="sequence-classification")
    print(f"logits {model(params, np.array([[1, 5, 6, 2]])).logits.shape}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(temporary)
