"""``deberta-jax evaluate``: computes the metrics of a trained model on a labelled file."""

import dataclasses

from deberta_jax.cli.output import json_text
from deberta_jax.cli.progress import text_bar
from deberta_jax.inference.trained import TrainedOptions, load_trained
from deberta_jax.training.experiment import compute_dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(TrainedOptions):
    """Prints the metrics of a model on a labelled file, as one JSON object.

    Options that are not given are those of the run that trained the model."""

    data: str
    """File as ``finetune`` reads it, or a pattern of several."""


def run(args: Args) -> None:
    """Prints the metrics."""
    task, model, table = load_trained(args, args.data, dtype=compute_dtype(args.dtype), labelled=True)
    with text_bar(len(table)) as progress:
        metrics = model.metrics_for(task, table, progress.update)
    print(json_text(metrics))
