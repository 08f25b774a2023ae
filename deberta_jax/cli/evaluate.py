"""``deberta-jax evaluate``: computes the metrics of a trained model on a labelled file."""

import dataclasses

from deberta_jax.cli.output import json_text
from deberta_jax.cli.progress import text_bar
from deberta_jax.inference.evaluation import EvaluateOptions, evaluate
from deberta_jax.training.experiment import compute_dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(EvaluateOptions):
    """Prints the metrics of a model on a labelled file, as one JSON object.

    Options that are not given are those of the run that trained the model."""


def run(args: Args) -> None:
    """Prints the metrics."""
    print(json_text(evaluate(args, dtype=compute_dtype(args.dtype), bar=text_bar)))
