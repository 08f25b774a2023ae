"""``deberta-jax predict``: writes a trained model's answers for a file."""

import dataclasses

from deberta_jax import storage
from deberta_jax.cli.output import json_text
from deberta_jax.cli.progress import text_bar
from deberta_jax.inference.trained import TrainedOptions, check_overwrites_nothing, load_trained
from deberta_jax.tasks import NonFinite
from deberta_jax.training.experiment import compute_dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(TrainedOptions):
    """Writes a model's answers for a file: one JSON object for each row, in the order of the file.

    Options that are not given are those of the run that trained the model."""

    input: str
    """File as ``finetune`` reads it, or a pattern of several; - reads jsonl on standard input."""
    output: str
    """File to write; - writes to standard output."""
    non_finite: NonFinite = "refuse"
    """What is done with a model with weights that are NaN or infinite, and with rows whose scores are: refuse them, or
    write null for such rows."""


def run(args: Args) -> None:
    """Writes the answers, whole or not at all."""
    with storage.output_text("--output", args.output) as output:
        check_overwrites_nothing(args.output, args.input, args.model)
        task, model, table = load_trained(
            args, args.input, dtype=compute_dtype(args.dtype), labelled=False, non_finite=args.non_finite
        )
        with text_bar(len(table)) as progress:
            rows = model.answers_for(task, table, progress.update)
        for row in rows:
            output.write(json_text(row, ensure_ascii=False) + "\n")
