"""Training from a checkout: ``python -m train VERB ...``.

    python -m train finetune --config configs/sst2_from_scratch.py --model DIR --output runs/sst2
    python -m train demo

The same as ``deberta-jax VERB ...``, for those who work in a checkout and edit ``configs/``. Nothing is implemented
here: the loop is ``deberta_jax/training/loop.py``, a run's construction ``deberta_jax/training/finetune.py``, its
arguments ``deberta_jax/training/experiment.py``.
"""
