"""QQP from the released models, with the settings of Microsoft's scripts.

Published on the development set, accuracy: large 0.923, v2-xlarge 0.923, v2-xxlarge 0.927, v3-large 0.930.
Not run here: released weights were not at hand.

    deberta-jax finetune --config configs/qqp.py:v3-large --data-dir DIR --output RUN
"""

from deberta_jax.training.experiment import Finetune
from deberta_jax.training.recipes import Recipe, published

# Learning rate, batch size, epochs, warm-up, dropout before the classifier.
RECIPES = {
    "base": Recipe(2e-5, 64, 8, 500, 0.15),
    "large": Recipe(1e-5, 64, 8, 500, 0.15),
    "xlarge": Recipe(7e-6, 64, 8, 500, 0.2),
    "v2-xlarge": Recipe(4e-6, 64, 10, 1000, 0.2),
    "v2-xxlarge": Recipe(3e-6, 64, 10, 1000, 0.2),
    "v3-large": Recipe(1e-5, 64, 6, 1000, 0.2),
}


def get_config(model: str = "v3-large") -> Finetune:
    return published("qqp", 320, RECIPES, model)
