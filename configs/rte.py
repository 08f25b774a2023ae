"""RTE from the released models, with the settings of Microsoft's scripts.

Not run here: released weights were not at hand.

v1 and v2 begin with the weights fine-tuned on MNLI; v3-large does not.

    deberta-jax finetune --config configs/rte.py:v3-large --data-dir DIR --output RUN
"""

from deberta_jax.training.experiment import Finetune
from deberta_jax.training.recipes import Recipe, published

# Learning rate, batch size, epochs, warm-up, dropout before the classifier; published score.
RECIPES = {
    "base": Recipe(2e-5, 32, 6, 100, 0.2),
    "large": Recipe(1e-5, 32, 6, 50, 0.2, score="0.910"),
    "xlarge": Recipe(5e-6, 48, 6, 50, 0.2, score="0.931"),
    "v2-xlarge": Recipe(4e-6, 48, 6, 50, 0.2, score="0.939"),
    "v2-xxlarge": Recipe(3e-6, 48, 6, 50, 0.2, score="0.935"),
    "v3-large": Recipe(1e-5, 32, 6, 50, 0.3, score="0.927"),
}


def get_config(model: str = "v3-large") -> Finetune:
    return published("rte", 320, RECIPES, model, script="glue/rte.sh", metric="accuracy", from_mnli=True)
