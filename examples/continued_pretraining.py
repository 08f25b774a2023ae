"""Continue the masked-LM pre-training of an existing model on text of one's own, and use the result.

As a command: deberta-jax pretrain mlm --model DIR --train a.txt --eval b.txt --output RUN --steps 60
"""

import dataclasses
import itertools
import json
import tempfile
from pathlib import Path

import jax

from deberta_jax import PRESETS, DebertaForMaskedLM, init_params, pipeline, save_pretrained, train_tokenizer
from deberta_jax.training import Optimization, PretrainMLM, pretrain

COLORS, ANIMALS, FOODS = ("red", "blue", "green"), ("cat", "dog", "cow"), ("milk", "fish", "hay")
LINES = [f"the {a} {b} likes {c}" for a, b, c in itertools.product(COLORS, ANIMALS, FOODS)]


def existing_model(directory: Path) -> None:
    """Saves a small model with a masked-LM head, in place of a released one."""
    tokenizer = train_tokenizer(LINES, 356, directory / "tokenizer")
    config = dataclasses.replace(
        PRESETS["deberta-v3-base"],
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
    )
    model = DebertaForMaskedLM(config)
    save_pretrained(directory / "model", model, init_params(model, jax.random.key(0)), tokenizer=tokenizer)


def main(directory: Path) -> None:
    existing_model(directory)
    (directory / "text.txt").write_text("\n".join(LINES * 4))
    experiment = PretrainMLM(
        model=str(directory / "model"),
        train=(str(directory / "text.txt"),),
        eval=str(directory / "text.txt"),
        output=str(directory / "run"),
        steps=60,
        eval_every=60,
        batch_size=8,
        max_length=32,
        optimization=Optimization(learning_rate=3e-3),
    )
    result = pretrain(experiment)
    log = [json.loads(line) for line in (directory / "run" / "log.jsonl").read_text().splitlines()]
    before = next(entry["eval"]["loss"] for entry in log if "eval" in entry)
    print(f"loss before {before:.2f}, after {result.metrics['loss']:.2f}")
    guesses = pipeline("fill-mask", str(directory / "run"))("the red cat [MASK] milk", top_k=3)
    print("guesses:", [guess["token_str"] for guess in guesses])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
