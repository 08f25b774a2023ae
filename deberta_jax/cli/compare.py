"""``deberta-jax compare``: compares runs by their settings and metrics."""

import dataclasses

import tyro

from deberta_jax.cli.text import print_text
from deberta_jax.training.comparison import check_ending, compare


@dataclasses.dataclass(frozen=True)
class Args:
    """Compares runs: the settings in which they differ, and their metrics, with mean and deviation over seeds.

    Runs that differ in nothing but the seed are one line, and the best line is first."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Directories of runs, or directories with runs below them, such as --seeds and sweep make."""
    output: str = ""
    """Also write a file that ends in .json (with every run), .csv (a line a group) or .png (a plot)."""


def run(args: Args) -> None:
    """Prints the table."""
    if args.output:
        check_ending(args.output)
    found = compare(args.runs)
    if args.output:
        found.write(args.output)
    print_text(found.text())
