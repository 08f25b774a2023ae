"""Write a recipe as an experiment, and see what its run would be before it starts: a dry run from Python.

`deberta-jax finetune --config configs/mnli.py:v3-base --data-dir DIR --output RUN --dry-run` prints the same for a
published recipe.
"""

import csv
import dataclasses
import json
import logging
import tempfile
from pathlib import Path

from deberta_jax import PRESETS, train_tokenizer
from deberta_jax.training import Finetune, Optimization, describe_finetune

SHOWN = ("steps", "learning_rate", "schedule", "warmup_steps", "parameters", "published_score", "recipe")


def files_of(directory: Path) -> None:
    """Writes a tiny architecture with a tokenizer, and a table to train and to evaluate on."""
    rows = [
        (f"{word} {thing}", word in ("fine", "great"))
        for word in ("fine", "great", "dull", "poor")
        for thing in ("film", "plot", "cast", "end")
    ]
    tokenizer = train_tokenizer([text for text, _ in rows], 356, directory / "model")
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = dataclasses.replace(PRESETS["deberta-v3-base"], vocab_size=tokenizer.vocab_size, **tiny)
    (directory / "model" / "config.json").write_text(json.dumps(config.to_hf()))
    with (directory / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def main(directory: Path) -> None:
    files_of(directory)
    experiment = Finetune(
        model=str(directory / "model"),
        from_scratch=True,
        train=str(directory / "reviews.csv"),
        eval=str(directory / "reviews.csv"),
        output=str(directory / "run"),
        epochs=3,
        batch_size=8,
        recipe="table 2 of our report",
        published_score="accuracy 0.91",
        optimization=Optimization(learning_rate=1.5e-5, warmup=500, schedule="original", bias_correction=False),
    )
    described = describe_finetune(experiment)  # it also warns that the warm-up is longer than the run
    print(json.dumps({name: described[name] for name in SHOWN}))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
