"""SST-2 from deberta-v3-large, with the hyper-parameters of Microsoft's published script.

Published dev accuracy 0.969. One 16 GB accelerator or more; the sizes have not been run here.

    deberta-jax finetune --config configs/sst2_v3_large.py --train train.tsv --eval dev.tsv --output RUN
"""

from deberta_jax.training.experiment import Finetune, Optimization


def get_config() -> Finetune:
    return Finetune(
        model="microsoft/deberta-v3-large",
        text=("sentence",),
        label="label",
        epochs=8,
        batch_size=32,
        max_length=128,
        dtype="bfloat16",
        dropout=0.1,
        optimization=Optimization(learning_rate=6e-6, warmup=500),
    )
