"""ReCoRD from the released models, with the settings of Microsoft's scripts.

The published scores are of Microsoft's own head; here each entity is a choice.
Not run here: released weights were not at hand.

    deberta-jax finetune --config configs/record.py:v3-large --data-dir DIR --output RUN
"""

from deberta_jax.training.experiment import Finetune
from deberta_jax.training.recipes import Recipe, published

# Learning rate, batch size, epochs, warm-up, dropout before the classifier; published score.
RECIPES = {
    "base": Recipe(2e-5, 64, 3, 1000, 0.3),
    "large": Recipe(1e-5, 64, 3, 1000, 0.3),
    "xlarge": Recipe(7e-6, 64, 3, 1000, 0.3),
    "v2-xlarge": Recipe(5e-6, 64, 3, 1000, 0.15, score="0.938"),
    "v2-xxlarge": Recipe(3e-6, 64, 3, 1000, 0.15, score="0.941"),
    "v3-large": Recipe(7e-6, 64, 3, 500, 0.1),
}


def get_config(model: str = "v3-large") -> Finetune:
    return published("record", 512, RECIPES, model, script="superglue/record.sh", metric="F1")
