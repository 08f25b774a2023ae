"""RACE from the released models, with the settings of Microsoft's scripts.

No score is published beside the script.
Not run here: released weights were not at hand.

All begin with the weights fine-tuned on MNLI.

    deberta-jax finetune --config configs/race.py:v2-xxlarge --data-dir DIR --output RUN
"""

from deberta_jax.training.experiment import Finetune
from deberta_jax.training.recipes import Recipe, published

# Learning rate, batch size, epochs, warm-up, dropout before the classifier.
RECIPES = {
    "base": Recipe(2e-5, 32, 6, 100, 0.2),
    "large": Recipe(8e-6, 32, 6, 100, 0.2),
    "xlarge": Recipe(7e-6, 48, 6, 100, 0.2),
    "v2-xlarge": Recipe(4e-6, 48, 6, 100, 0.2),
    "v2-xxlarge": Recipe(3e-6, 48, 6, 100, 0.2),
}


def get_config(model: str = "v2-xxlarge") -> Finetune:
    return published("race", 320, RECIPES, model, script="my_exp/run.sh", from_mnli=True)
