"""``deberta-jax demo``."""

import dataclasses

from deberta_jax import storage
from deberta_jax.training.demo import report, run_demo


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Train a vocabulary, a masked LM and a classifier on Python's own docstrings; evaluate, predict, save."""

    output: str = "demo-output"
    """Directory for everything the demonstration makes."""


def run(args: Args) -> None:
    output = storage.output_directory("--output", args.output)
    print(report(run_demo(output), output))
