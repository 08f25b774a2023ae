"""Pre-training of a small model on a few megabytes of text, in some ten minutes on two CPU cores.

``mlm`` and ``rtd`` take the same directory: ``config.json`` and a vocabulary of about 4,000 pieces trained on the text.
``benchmarks/pretraining.py`` makes one, runs both, ``rtd`` for longer too, and fine-tunes what comes out; its results
stand beside it.

    deberta-jax pretrain mlm --config configs/pretrain_laptop.py:mlm --model DIR --train A.txt --eval B.txt --output RUN
"""

from deberta_jax.training.experiment import Optimization, Pretraining, PretrainMLM, PretrainRTD, RunOptions


def get_config(kind: str) -> Pretraining:
    # Small models want high rates, and a larger share of targets is more to learn from in every step.
    common = {
        "from_scratch": True,
        "layout": "contiguous",
        "batch_size": 16,
        "max_length": 64,
        "mask_share": 0.2,
        "eval_every": 1000,
        "runtime": RunOptions(log_every=50, checkpoint_every=500),
    }
    if kind == "mlm":
        return PretrainMLM(
            **common,
            steps=5000,
            head="mask-decoder",
            optimization=Optimization(learning_rate=3e-3, warmup=0.06, beta2=0.98),
        )
    return PretrainRTD(
        **common,
        steps=4000,
        generator_layers=1,
        discriminator_learning_rate=7e-4,
        optimization=Optimization(learning_rate=3e-3, warmup=0.06, beta2=0.98),
    )
