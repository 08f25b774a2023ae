"""``deberta-jax evaluate``."""

import dataclasses
import json
import sys
from typing import Literal

from tqdm import tqdm

from deberta_jax.data.labels import LabelSpec, encode_labels
from deberta_jax.data.tables import Table, read_table
from deberta_jax.errors import InputError
from deberta_jax.inference.pipelines import TextClassifier, pipeline
from deberta_jax.inference.predict import problem_of, score
from deberta_jax.training.experiment import compute_dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Metrics of a model on a labelled file: one JSON object on standard output."""

    model: str
    """Model directory or hub id with a trained classifier."""
    data: str
    """csv, tsv or jsonl file."""
    text: tuple[str, ...] = ("text",)
    """Column of the text, or two columns of a pair."""
    label: str = "label"
    """Column of the label."""
    batch_size: int = 32
    max_length: int | None = None
    """Longest input in tokens; what the model was trained with if not given, else 512."""
    dtype: Literal["float32", "bfloat16"] = "float32"


def run(args: Args) -> None:
    table = read_table(args.data)
    pipe = load_pipeline(args)
    problem = problem_of(pipe.model.config)
    labels = encode_labels(table, args.label, LabelSpec(problem, pipe.model.config.id2label))
    logits = logits_of(pipe, table, args.text)
    print(json.dumps(score(logits, labels, problem)))


def load_pipeline(args) -> TextClassifier:
    """The classifier that ``evaluate`` and ``predict`` share."""
    return pipeline(
        "text-classification", args.model, dtype=compute_dtype(args.dtype), max_length=args.max_length,
        batch_size=args.batch_size,
    )  # fmt: skip


def logits_of(pipe: TextClassifier, table: Table, columns: tuple[str, ...]):
    """Logits of a table's texts, with a progress bar."""
    if not 1 <= len(columns) <= 2:
        raise InputError(f"--text: give one column, or two for a pair, not {len(columns)}")
    texts = [table.texts(column) for column in columns]
    with tqdm(total=len(table), unit="text", file=sys.stderr, leave=False) as bar:
        return pipe.logits(texts[0], texts[1] if len(texts) > 1 else None, bar.update)
