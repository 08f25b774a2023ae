"""CoNLL-2003 from the released models, with the settings of Microsoft's scripts.

No score is published beside the script.
Not run here: released weights were not at hand.

    deberta-jax finetune --config configs/conll2003.py:v3-large --data-dir DIR --output RUN
"""

from deberta_jax.training.experiment import Finetune
from deberta_jax.training.recipes import Recipe, published

# Learning rate, batch size, epochs, warm-up, dropout before the classifier.
RECIPES = {
    "base": Recipe(2e-5, 16, 15, 0.1, 0.0),
    "large": Recipe(1e-5, 16, 15, 0.1, 0.0),
    "xlarge": Recipe(7e-6, 16, 15, 0.1, 0.0),
    "v2-xlarge": Recipe(4e-6, 16, 15, 0.1, 0.0),
    "v2-xxlarge": Recipe(2.5e-6, 16, 15, 0.1, 0.0),
    "v3-large": Recipe(9e-6, 16, 10, 10, 0.0),
}


def get_config(model: str = "v3-large") -> Finetune:
    return published("conll2003", 512, RECIPES, model, script="ner/ner.sh")
