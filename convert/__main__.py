"""Converts checkpoints, from a checkout: the same as ``deberta-jax convert`` of an installed package.

    python -m convert microsoft/deberta-v3-base ./v3-base --to hf            a hub id -> a model directory
    python -m convert ./pytorch_model.bin ./pod --to orbax --dtype bf16      a PyTorch file -> an Orbax checkpoint
    python -m convert ./run ./release --to hf --head sequence-classification

No PyTorch is needed. The report names every tensor that was folded or dropped, and why; a tensor without an explanation
stops the conversion. ``deberta-jax inspect SOURCE`` says beforehand what a checkpoint holds, ``deberta-jax verify
SOURCE --against RESULT`` afterwards that nothing changed.
"""

import sys

from deberta_jax.cli.main import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
