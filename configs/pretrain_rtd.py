"""DeBERTa v3 by replaced-token detection with disentangled embedding sharing, with the settings of Microsoft's scripts.

Their weight of the discriminator's loss is 10; the papers' is 50, which is the default here. There are no scripts for
``small`` and ``mdeberta``: they have those of ``base``. ``continue`` goes on from released generator and discriminator
(``--model``, ``--generator``). Not run here: these are for accelerators.

    deberta-jax prepare --tokenizer TOK --input 'text/*.txt' --output TOKENS
    deberta-jax pretrain rtd --config configs/pretrain_rtd.py:base --tokenizer TOK --train TOKENS --eval F --output RUN
    deberta-jax pretrain rtd --config configs/pretrain_rtd.py:continue --model microsoft/deberta-v3-small --generator \
        microsoft/deberta-v3-small/pytorch_model.generator.bin --train TOKENS --eval F --output RUN
"""

from deberta_jax.training.experiment import Optimization, PretrainRTD, RunOptions
from deberta_jax.training.recipes import recipe

# Architecture, learning rate, batch size, steps.
RECIPES = {
    "xsmall": ("deberta-v3-xsmall", 3e-4, 64, 1_000_000),
    "small": ("deberta-v3-small", 1e-4, 256, 1_000_000),
    "base": ("deberta-v3-base", 1e-4, 256, 1_000_000),
    "large": ("deberta-v3-large", 1e-4, 256, 1_000_000),
    "mdeberta": ("mdeberta-v3-base", 1e-4, 256, 1_000_000),
    "continue": ("", 5e-5, 256, 100_000),
}


def get_config(size: str = "base") -> PretrainRTD:
    model, rate, batch_size, steps = recipe("pre-training", RECIPES, size)
    return PretrainRTD(
        model=model,
        from_scratch=size != "continue",
        steps=steps,
        batch_size=batch_size,
        max_length=512,
        layout="contiguous",
        discriminator_weight=10.0,
        dtype="bfloat16",
        eval_every=10_000,
        optimization=Optimization(
            learning_rate=rate, warmup=10_000, schedule="original", bias_correction=False, weight_decay=0.01
        ),
        runtime=RunOptions(remat="dots", log_every=100, checkpoint_every=1000),
    )
