"""MNLI from the released models, with the settings of Microsoft's scripts.

Not run here: released weights were not at hand.

    deberta-jax finetune --config configs/mnli.py:v3-large --data-dir DIR --output RUN
"""

from deberta_jax.training.experiment import Finetune
from deberta_jax.training.recipes import Recipe, published

# Learning rate, batch size, epochs, warm-up, dropout before the classifier, weight of SiFT's loss; published score.
RECIPES = {
    "base": Recipe(3e-5, 64, 3, 1000, 0.1, score="0.888"),
    "large": Recipe(1e-5, 64, 3, 1000, 0.2, score="0.913"),
    "xlarge": Recipe(5e-6, 64, 3, 1000, 0.3, score="0.915"),
    "v2-xlarge": Recipe(4e-6, 64, 3, 1000, 0.25, score="0.917"),
    "v2-xxlarge": Recipe(3e-6, 64, 3, 1000, 0.3, score="0.917"),
    "v3-large": Recipe(7e-6, 64, 2, 500, 0.3, score="0.918"),
    "v3-xsmall": Recipe(4.5e-5, 64, 3, 1000, 0.1, score="0.881"),
    "v3-small": Recipe(4.5e-5, 64, 3, 1500, 0.2, score="0.883"),
    "v3-base": Recipe(1.5e-5, 64, 3, 1000, 0.1, score="0.906"),
    "v3-xsmall-sift": Recipe(5e-5, 64, 10, 1500, 0.1, 3.0, score="0.884"),
    "v3-small-sift": Recipe(3.5e-5, 64, 6, 1000, 0.1, 5.0),
    "v3-base-sift": Recipe(1.5e-5, 64, 6, 1000, 0.1, 5.0),
    "base-sift": Recipe(1.5e-5, 64, 6, 1000, 0.1, 5.0),
    "v2-xxlarge-sift": Recipe(3e-6, 64, 6, 1000, 0.3, 5.0, score="0.920"),
}


def get_config(model: str = "v3-large") -> Finetune:
    return published("mnli", 256, RECIPES, model, script="glue/mnli.sh", metric="accuracy, matched")
