"""SST-2 from the released models, with the settings of Microsoft's scripts.

Published on the development set, accuracy: large 0.965, xlarge 0.970, v2-xlarge 0.975, v2-xxlarge 0.972, v3-large
0.969.
Not run here: released weights were not at hand.

    deberta-jax finetune --config configs/sst2.py:v3-large --data-dir DIR --output RUN
"""

from deberta_jax.training.experiment import Finetune
from deberta_jax.training.recipes import Recipe, published

# Learning rate, batch size, epochs, warm-up, dropout before the classifier.
RECIPES = {
    "base": Recipe(2e-5, 32, 6, 500, 0.15),
    "large": Recipe(1e-5, 32, 6, 500, 0.15),
    "xlarge": Recipe(3e-6, 32, 6, 500, 0.2),
    "v2-xlarge": Recipe(4e-6, 32, 4, 500, 0.2),
    "v2-xxlarge": Recipe(3e-6, 32, 4, 500, 0.2),
    "v3-large": Recipe(6e-6, 32, 8, 500, 0.1),
}


def get_config(model: str = "v3-large") -> Finetune:
    return published("sst2", 128, RECIPES, model)
