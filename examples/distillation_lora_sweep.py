"""Train a teacher, distil it into a student of one of its layers with and without LoRA, and compare the runs.

As commands: deberta-jax finetune --teacher TEACHER --student-layers 1 --temperature 4 ...; deberta-jax compare RUN...
"""

import csv
import dataclasses
import itertools
import json
import tempfile
from pathlib import Path

from deberta_jax import PRESETS, train_tokenizer
from deberta_jax.training import Distillation, Finetune, Optimization, RunOptions, finetune, sweep

WORDS = {"good": ("fine", "great", "lovely"), "bad": ("dull", "poor", "weak")}
THINGS = ("film", "plot", "cast", "end", "scene", "song")
ROWS = [(f"{w} {t}", label) for label, words in WORDS.items() for w, t in itertools.product(words, THINGS)]


def make_inputs(directory: Path) -> None:
    """Writes a table, and a tiny architecture with a tokenizer in place of a released model."""
    with (directory / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *ROWS])
    tokenizer = train_tokenizer([text for text, _ in ROWS], 360, directory / "blank")
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = dataclasses.replace(PRESETS["deberta-v3-base"], vocab_size=tokenizer.vocab_size, **tiny)
    (directory / "blank" / "config.json").write_text(json.dumps(config.to_hf()))


def main(directory: Path) -> None:
    make_inputs(directory)
    teacher = Finetune(
        model=str(directory / "blank"),
        from_scratch=True,
        train=str(directory / "reviews.csv"),
        eval=str(directory / "reviews.csv"),
        output=str(directory / "teacher"),
        epochs=3,
        batch_size=36,
        optimization=Optimization(learning_rate=1e-2),
        runtime=RunOptions(keep_state=0),
    )
    print(f"teacher: accuracy {finetune(teacher).metrics['accuracy']:.2f}")
    distillation = Distillation(teacher=teacher.output, student_layers=(1,), temperature=4.0, hidden_weight=0.1)
    student = dataclasses.replace(
        teacher, model="", from_scratch=False, output=str(directory / "students"), distillation=distillation
    )
    comparison = sweep(student, {"lora": [0, 4]}).comparison
    assert comparison is not None
    print(comparison.text())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
