"""Microsoft's published fine-tuning settings as experiments; the numbers stand in ``configs/``, a file a task."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from deberta_jax.errors import InputError
from deberta_jax.training.experiment import Finetune, Optimization

R = TypeVar("R")


class Recipe(NamedTuple):
    """Holds the settings of one model on one task.

    Attributes:
      warmup: steps of the warm-up; below 1 a fraction of all steps.
      dropout: rate before the classifier.
      sift: weight of the SiFT loss.
      score: what Microsoft published for these settings, on the development set; "" where nothing is.
    """

    learning_rate: float
    batch_size: int
    epochs: int
    warmup: float
    dropout: float
    sift: float = 0.0
    score: str = ""


HUB = {
    "base": "microsoft/deberta-base",
    "large": "microsoft/deberta-large",
    "xlarge": "microsoft/deberta-xlarge",
    "v2-xlarge": "microsoft/deberta-v2-xlarge",
    "v2-xxlarge": "microsoft/deberta-v2-xxlarge",
    "v3-xsmall": "microsoft/deberta-v3-xsmall",
    "v3-small": "microsoft/deberta-v3-small",
    "v3-base": "microsoft/deberta-v3-base",
    "v3-large": "microsoft/deberta-v3-large",
}


def recipe(what: str, recipes: Mapping[str, R], name: str) -> R:
    """Returns a recipe by its name. Raises InputError for a name without one; ``what`` is named in the message."""
    if name not in recipes:
        raise InputError(f"{what}: no published recipe for {name}; there are {', '.join(recipes)}")
    return recipes[name]


def published(
    task: str,
    length: int,
    recipes: Mapping[str, Recipe],
    model: str,
    *,
    script: str,
    metric: str = "",
    from_mnli: bool = False,
    **more: Any,
) -> Finetune:
    """Returns the experiment of a recipe, with Microsoft's optimizer and schedule.

    Args:
      length: tokens of the longest input.
      model: a name in ``recipes``; the ending ``-sift`` means the recipe with SiFT.
      script: where the settings stand, below ``experiments/`` of Microsoft's repository.
      metric: the name of the metric that the scores are of.
      from_mnli: v1 and v2 start from weights that were fine-tuned on MNLI.
      more: further fields of the experiment.

    Raises:
      InputError: a model without a published recipe for this task.
    """
    r = recipe(task, recipes, model)
    name = model.removesuffix("-sift")
    start = HUB[name] + ("-mnli" if from_mnli and not name.startswith("v3") else "")
    optimization = Optimization(
        learning_rate=r.learning_rate, warmup=r.warmup, schedule="original", bias_correction=False
    )
    return Finetune(
        task=task,
        model=start,
        max_length=length,
        batch_size=r.batch_size,
        epochs=r.epochs,
        dropout=r.dropout,
        sift=r.sift,
        seed=1234,
        recipe=f"{model}: experiments/{script} of microsoft/DeBERTa",
        published_score=f"{metric} {r.score}" if r.score else "",
        optimization=optimization,
        **more,
    )
