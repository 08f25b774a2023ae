"""MNLI from the released models, with the settings of Microsoft's scripts.

Published on the development set, accuracy, matched: base 0.888, large 0.913, xlarge 0.915, v2-xlarge 0.917,
v2-xxlarge 0.917 (0.920 with SiFT), v3-xsmall 0.881 (0.884 with SiFT), v3-small 0.883, v3-base 0.906, v3-large
0.918.
Not run here: released weights were not at hand.

    deberta-jax finetune --config configs/mnli.py:v3-large --data-dir DIR --output RUN
"""

from deberta_jax.training.experiment import Finetune
from deberta_jax.training.recipes import Recipe, published

# Learning rate, batch size, epochs, warm-up, dropout before the classifier, weight of SiFT's loss.
RECIPES = {
    "base": Recipe(3e-5, 64, 3, 1000, 0.1),
    "large": Recipe(1e-5, 64, 3, 1000, 0.2),
    "xlarge": Recipe(5e-6, 64, 3, 1000, 0.3),
    "v2-xlarge": Recipe(4e-6, 64, 3, 1000, 0.25),
    "v2-xxlarge": Recipe(3e-6, 64, 3, 1000, 0.3),
    "v3-large": Recipe(7e-6, 64, 2, 500, 0.3),
    "v3-xsmall": Recipe(4.5e-5, 64, 3, 1000, 0.1),
    "v3-small": Recipe(4.5e-5, 64, 3, 1500, 0.2),
    "v3-base": Recipe(1.5e-5, 64, 3, 1000, 0.1),
    "v3-xsmall-sift": Recipe(5e-5, 64, 10, 1500, 0.1, 3.0),
    "v3-small-sift": Recipe(3.5e-5, 64, 6, 1000, 0.1, 5.0),
    "v3-base-sift": Recipe(1.5e-5, 64, 6, 1000, 0.1, 5.0),
    "base-sift": Recipe(1.5e-5, 64, 6, 1000, 0.1, 5.0),
    "v2-xxlarge-sift": Recipe(3e-6, 64, 6, 1000, 0.3, 5.0),
}


def get_config(model: str = "v3-large") -> Finetune:
    return published("mnli", 256, RECIPES, model)
