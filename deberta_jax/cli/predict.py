"""``deberta-jax predict``."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Literal

from deberta_jax.cli.evaluate import load_pipeline, logits_of
from deberta_jax.data.tables import read_table
from deberta_jax.errors import InputError
from deberta_jax.inference.predict import probabilities


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Labels and probabilities for a file of texts: one JSON object a row, in the order of the file."""

    model: str
    """Model directory or hub id with a trained classifier."""
    input: str
    """csv, tsv or jsonl file; - reads jsonl on standard input."""
    output: str
    """File to write; - writes to standard output."""
    text: tuple[str, ...] = ("text",)
    """Column of the text, or two columns of a pair."""
    batch_size: int = 32
    max_length: int | None = None
    """Longest input in tokens; what the model was trained with if not given, else 512."""
    dtype: Literal["float32", "bfloat16"] = "float32"


def run(args: Args) -> None:
    if args.output != "-" and not Path(args.output).absolute().parent.is_dir():
        raise InputError(f"--output {args.output}: its directory does not exist")
    if Path(args.output).is_dir():
        raise InputError(f"--output {args.output}: is a directory; give a file")
    table = read_table(args.input)
    pipe = load_pipeline(args)
    logits = logits_of(pipe, table, args.text)
    labels = pipe.model.config.id2label
    rows = []
    for row in logits:
        answer = pipe.answer(row)
        if pipe.regression:
            rows.append({"label": answer["label"], "score": answer["score"]})
        else:
            shares = dict(zip(labels, map(float, probabilities(row)), strict=True))
            rows.append({"label": answer["label"], "probabilities": shares})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if args.output == "-":
        print(lines, end="")
        return
    partial = f"{args.output}.partial"
    Path(partial).write_text(lines, encoding="utf-8")
    os.replace(partial, args.output)
