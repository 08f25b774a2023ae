"""``deberta-jax demo``: trains, evaluates and predicts on text that comes with Python."""

import dataclasses

from deberta_jax import storage
from deberta_jax.training.demo import format_report, run_demo


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Trains a vocabulary, a masked LM and a tagger of words on Python's own docstrings; evaluates and predicts."""

    output: str = "demo-output"
    """Directory for all files of the demonstration."""


def run(args: Args) -> None:
    """Runs the demonstration and prints its report."""
    output = storage.local_directory("--output", args.output)
    print(format_report(run_demo(output), output))
