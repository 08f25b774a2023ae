"""DeBERTa v1 and v2 from nothing by masked language modelling, with the settings of Microsoft's scripts.

Words and spans of up to three are masked, 15 %, and read by the enhanced mask decoder. The scripts' one departure from
what they mean, that the last tenth of a row is almost never masked, is had by ``--skip-tail``. There is none for
``large``: it has those of ``base``. Not run here: 1,000,000 steps are for accelerators.

    deberta-jax prepare --tokenizer TOK --input 'text/*.txt' --output TOKENS
    deberta-jax pretrain mlm --config configs/pretrain_mlm.py:base --tokenizer TOK --train TOKENS --eval F --output RUN
"""

from deberta_jax.training.experiment import Optimization, PretrainMLM, RunOptions
from deberta_jax.training.recipes import recipe

# Architecture, batch size, warm-up in steps.
RECIPES = {
    "base": ("deberta-base", 256, 10000),
    "large": ("deberta-large", 256, 10000),
    "xlarge": ("deberta-xlarge", 32, 1000),
    "v2-xlarge": ("deberta-v2-xlarge", 32, 1000),
    "v2-xxlarge": ("deberta-v2-xxlarge", 32, 1000),
}


def get_config(size: str = "base") -> PretrainMLM:
    model, batch_size, warmup = recipe("pre-training", RECIPES, size)
    return PretrainMLM(
        model=model,
        from_scratch=True,
        head="mask-decoder",
        steps=1_000_000,
        batch_size=batch_size,
        max_length=512,
        layout="contiguous",
        mask_unit="word",
        longest_span=3,
        dtype="bfloat16",
        eval_every=10_000,
        optimization=Optimization(
            learning_rate=1e-4, warmup=warmup, schedule="original", bias_correction=False, weight_decay=0.01
        ),
        runtime=RunOptions(remat="dots", log_every=100, checkpoint_every=1000),
    )
