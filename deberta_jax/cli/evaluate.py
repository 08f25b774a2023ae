"""``deberta-jax evaluate``: computes the metrics of a trained model on a labelled file."""

import dataclasses

from deberta_jax.cli.output import json_text
from deberta_jax.cli.progress import prediction_bar
from deberta_jax.inference.evaluation import EvaluateOptions, evaluate
from deberta_jax.inference.prediction import Share
from deberta_jax.training.experiment import compute_dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(EvaluateOptions):
    """Prints the metrics of a model on a labelled file, as one JSON object.

    Options that are not given are those of the run that trained the model."""


def run(args: Args) -> None:
    """Prints the metrics."""
    names = {field.name for field in dataclasses.fields(EvaluateOptions)}
    options = EvaluateOptions(**{name: getattr(args, name) for name in names})
    with prediction_bar(options.data, Share()) as progress:
        print(json_text(evaluate(options, dtype=compute_dtype(args.dtype), progress=progress)))
