"""QNLI from the released models, with the settings of Microsoft's scripts.

Not run here: released weights were not at hand.

    deberta-jax finetune --config configs/qnli.py:v3-large --data-dir DIR --output RUN
"""

from deberta_jax.training.experiment import Finetune
from deberta_jax.training.recipes import Recipe, published

# Learning rate, batch size, epochs, warm-up, dropout before the classifier; published score.
RECIPES = {
    "base": Recipe(2e-5, 32, 4, 500, 0.15),
    "large": Recipe(1e-5, 32, 4, 500, 0.15, score="0.953"),
    "xlarge": Recipe(7e-6, 32, 4, 500, 0.2),
    "v2-xlarge": Recipe(4e-6, 64, 4, 500, 0.2, score="0.958"),
    "v2-xxlarge": Recipe(3e-6, 64, 4, 500, 0.2, score="0.960"),
    "v3-large": Recipe(7e-6, 64, 6, 200, 0.2, score="0.960"),
}


def get_config(model: str = "v3-large") -> Finetune:
    return published("qnli", 512, RECIPES, model, script="glue/qnli.sh", metric="accuracy")
