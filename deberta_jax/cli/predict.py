"""``deberta-jax predict``."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

from deberta_jax import storage
from deberta_jax.cli.evaluate import bar, prepared
from deberta_jax.errors import InputError
from deberta_jax.inference.tasks import TaskOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(TaskOptions):
    """A model's answers for a file: one JSON object a row, in the order of the file.

    What is not given is as the run that trained the model had it."""

    model: str
    """Model directory or hub id with a trained head."""
    input: str
    """File as ``finetune`` reads it, or a pattern of several; - reads jsonl on standard input."""
    output: str
    """File to write; - writes to standard output."""
    batch_size: int = 32
    max_length: int | None = None
    """Longest input in tokens; what the model was trained with if not given, else 512."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    ignore: tuple[str, ...] = ()
    """Patterns of the model's tensors to leave out, such as 'crf.*' for a head that is not known here."""
    base_model: str | None = None
    """Base of a peft adapter: a directory or hub id; what adapter_config.json names if not given."""


def run(args: Args) -> None:
    with storage.output_text("--output", args.output) as output:
        _check_output(args)
        task, model, table = prepared(args, args.model, args.input, labelled=False)
        with bar(table) as progress:
            rows = model.answers_for(task, table, progress.update)
        for row in rows:
            output.write(json.dumps(row, ensure_ascii=False) + "\n")


def _check_output(args: Args) -> None:
    """Raises InputError for an output that would take the place of what is read."""
    output = Path(args.output).expanduser()
    if not output.is_file():
        return
    if any(output.samefile(file) for file in storage.matching(args.input) if Path(file).is_file()):
        raise InputError(f"--output {args.output}: is the input; give another file")
    model = Path(args.model).expanduser()
    if model.is_dir() and output.resolve().parent == model.resolve():
        raise InputError(f"--output {args.output}: is a file of the model; give another file")
