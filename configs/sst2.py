"""SST-2 from the released models, with the settings of Microsoft's scripts.

Not run here: released weights were not at hand.

    deberta-jax finetune --config configs/sst2.py:v3-large --data-dir DIR --output RUN
"""

from deberta_jax.training.experiment import Finetune
from deberta_jax.training.recipes import Recipe, published

# Learning rate, batch size, epochs, warm-up, dropout before the classifier; published score.
RECIPES = {
    "base": Recipe(2e-5, 32, 6, 500, 0.15),
    "large": Recipe(1e-5, 32, 6, 500, 0.15, score="0.965"),
    "xlarge": Recipe(3e-6, 32, 6, 500, 0.2, score="0.970"),
    "v2-xlarge": Recipe(4e-6, 32, 4, 500, 0.2, score="0.975"),
    "v2-xxlarge": Recipe(3e-6, 32, 4, 500, 0.2, score="0.972"),
    "v3-large": Recipe(6e-6, 32, 8, 500, 0.1, score="0.969"),
}


def get_config(model: str = "v3-large") -> Finetune:
    return published("sst2", 128, RECIPES, model, script="glue/sst2.sh", metric="accuracy")
