"""MRPC from the released models, with the settings of Microsoft's scripts.

Not run here: released weights were not at hand.

v1 and v2 begin with the weights fine-tuned on MNLI; v3-large does not.

    deberta-jax finetune --config configs/mrpc.py:v3-large --data-dir DIR --output RUN
"""

from deberta_jax.training.experiment import Finetune
from deberta_jax.training.recipes import Recipe, published

# Learning rate, batch size, epochs, warm-up, dropout before the classifier; published score.
RECIPES = {
    "base": Recipe(2e-5, 32, 6, 50, 0.15),
    "large": Recipe(1e-5, 32, 6, 50, 0.15, score="0.926"),
    "xlarge": Recipe(7e-6, 32, 8, 50, 0.3, score="0.921"),
    "v2-xlarge": Recipe(3.5e-6, 32, 6, 50, 0.2, score="0.920"),
    "v2-xxlarge": Recipe(2e-6, 32, 6, 50, 0.2, score="0.931"),
    "v3-large": Recipe(6e-6, 32, 6, 50, 0.2, score="0.922"),
}


def get_config(model: str = "v3-large") -> Finetune:
    return published("mrpc", 128, RECIPES, model, script="glue/mrpc.sh", metric="accuracy", from_mnli=True)
