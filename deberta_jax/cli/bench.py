"""``deberta-jax bench``: measures throughput, utilisation, memory and compile time on this machine."""

import dataclasses
import sys
from typing import Literal

from deberta_jax.benchmarking.cases import make_cases
from deberta_jax.benchmarking.results import check_outputs, format_table, plot, write_rows
from deberta_jax.benchmarking.timing import measure_all
from deberta_jax.cli.output import json_text
from deberta_jax.errors import InputError
from deberta_jax.progress import progress_bar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Times prediction and training steps on this machine's devices, with random weights and random tokens.

    Prints one line of JSON when a case is done, and a table at the end."""

    models: tuple[str, ...] = ("deberta-v3-base",)
    """Names of released architectures, model directories or hub ids; weights are not read."""
    jobs: tuple[Literal["forward", "train"], ...] = ("forward", "train")
    """What to time: forward, a prediction; train, a training step."""
    lengths: tuple[int, ...] = (128, 512)
    """Tokens of a row, in each measurement."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("bfloat16",)
    """Dtype of the computation."""
    texts: tuple[Literal["fixed", "mixed"], ...] = ("fixed", "mixed")
    """One text a row; or rows packed with texts of many lengths."""
    tokens: int = 4096
    """Token slots of a batch, on all devices together."""
    steps: int = 10
    """Timed steps; their median counts."""
    attention: str = "auto"
    """Attention implementation."""
    record: str = ""
    """Write all lines to this file too, as one JSON list."""
    plot: str = ""
    """Draw tokens a second into this file: png, svg or pdf."""


def run(args: Args) -> None:
    """Measures all cases and prints their figures."""
    if args.steps < 1:
        raise InputError(f"--steps {args.steps}: must be at least 1")
    check_outputs(args.record, args.plot)
    cases = make_cases(
        args.models, args.jobs, args.lengths, args.dtypes, args.texts, tokens=args.tokens, attention=args.attention
    )
    measured = measure_all(cases, steps=args.steps)
    rows = []
    for row in progress_bar(iterable=measured, total=len(cases), desc="benchmarks", leave=False):
        print(json_text(row), flush=True)
        rows.append(row)
    print("\n".join(format_table(rows)), file=sys.stderr)
    if args.record:
        write_rows(rows, args.record)
    if args.plot:
        plot(rows, args.plot)
