"""COPA from the released models, with the settings of Microsoft's scripts.

Not run here: released weights were not at hand.

All begin with the weights fine-tuned on MNLI.

    deberta-jax finetune --config configs/copa.py:v2-xxlarge --data-dir DIR --output RUN
"""

from deberta_jax.training.experiment import Finetune
from deberta_jax.training.recipes import Recipe, published

# Learning rate, batch size, epochs, warm-up, dropout before the classifier; published score.
RECIPES = {
    "base": Recipe(1e-5, 32, 3, 50, 0.1),
    "large": Recipe(5e-6, 16, 4, 30, 0.1),
    "xlarge": Recipe(3e-6, 24, 4, 30, 0.1),
    "v2-xlarge": Recipe(2e-6, 24, 4, 30, 0.1, score="0.97"),
    "v2-xxlarge": Recipe(1e-6, 24, 8, 30, 0.1, score="0.97"),
}


def get_config(model: str = "v2-xxlarge") -> Finetune:
    return published("copa", 136, RECIPES, model, script="superglue/copa.sh", metric="accuracy", from_mnli=True)
