"""CoLA from the released models, with the settings of Microsoft's scripts.

Published on the development set, Matthews correlation: large 0.695, v2-xlarge 0.711, v2-xxlarge 0.720 (0.735 with
SiFT), v3-large 0.753.
Not run here: released weights were not at hand.

    deberta-jax finetune --config configs/cola.py:v3-large --data-dir DIR --output RUN
"""

from deberta_jax.training.experiment import Finetune
from deberta_jax.training.recipes import Recipe, published

# Learning rate, batch size, epochs, warm-up, dropout before the classifier.
RECIPES = {
    "base": Recipe(2e-5, 32, 6, 100, 0.15),
    "large": Recipe(7e-6, 32, 6, 100, 0.15),
    "xlarge": Recipe(5e-6, 32, 8, 100, 0.2),
    "v2-xlarge": Recipe(3e-6, 32, 8, 100, 0.2),
    "v2-xxlarge": Recipe(2.5e-6, 32, 10, 100, 0.2),
    "v3-large": Recipe(5.5e-6, 32, 10, 50, 0.1),
}


def get_config(model: str = "v3-large") -> Finetune:
    return published("cola", 64, RECIPES, model)
