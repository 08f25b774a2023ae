"""STS-B from the released models, with the settings of Microsoft's scripts.

Not run here: released weights were not at hand.

v1 and v2 begin with the weights fine-tuned on MNLI; v3-large does not.

    deberta-jax finetune --config configs/stsb.py:v3-large --data-dir DIR --output RUN
"""

from deberta_jax.training.experiment import Finetune
from deberta_jax.training.recipes import Recipe, published

# Learning rate, batch size, epochs, warm-up, dropout before the classifier; published score.
RECIPES = {
    "base": Recipe(2e-5, 32, 6, 100, 0.15),
    "large": Recipe(7e-6, 32, 4, 100, 0.15, score="0.928"),
    "xlarge": Recipe(7e-6, 32, 4, 100, 0.2, score="0.929"),
    "v2-xlarge": Recipe(4e-6, 32, 4, 100, 0.2, score="0.929"),
    "v2-xxlarge": Recipe(3e-6, 32, 4, 100, 0.2, score="0.932"),
    "v3-large": Recipe(7e-6, 32, 4, 50, 0.1, score="0.930"),
}


def get_config(model: str = "v3-large") -> Finetune:
    return published("stsb", 128, RECIPES, model, script="glue/stsb.sh", metric="Pearson correlation", from_mnli=True)
