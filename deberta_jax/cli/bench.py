"""``deberta-jax bench``: tokens a second, utilisation, memory and compile time on this machine."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.planning.bench import cases, draw, measure, product_peak, table
from deberta_jax.presets import PRESETS
from deberta_jax.weights import load_config

_PICTURES = (".png", ".svg", ".pdf")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Times prediction and training steps on this machine's devices, with random weights and made-up texts.

    Prints a line of JSON for every case as it is done, and a table at the end."""

    models: tuple[str, ...] = ("deberta-v3-base",)
    """Names of released architectures, model directories or hub ids; weights are not read."""
    jobs: tuple[Literal["forward", "train"], ...] = ("forward", "train")
    lengths: tuple[int, ...] = (128, 512)
    """Tokens of a row."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("bfloat16",)
    texts: tuple[Literal["fixed", "mixed"], ...] = ("fixed", "mixed")
    """One text a row; or rows packed with texts of many lengths."""
    tokens: int = 4096
    """Places for tokens of a batch, on all devices together."""
    steps: int = 10
    """That are timed; their median counts."""
    attention: str = "auto"
    record: str = ""
    """Write all lines to this file too, as one JSON list."""
    plot: str = ""
    """Draw tokens a second into this file: png, svg or pdf."""


def run(args: Args) -> None:
    if args.steps < 1:
        raise InputError(f"--steps {args.steps}: must be at least 1")
    if args.plot and Path(args.plot).suffix not in _PICTURES:
        raise InputError(f"--plot {args.plot}: give a name that ends in {', '.join(_PICTURES)}")
    for name in ("record", "plot"):
        storage.check_output_file(f"--{name}", getattr(args, name) or "-")
    models = {name: PRESETS[name] if name in PRESETS else load_config(name) for name in args.models}
    wanted = cases(
        models, args.jobs, args.lengths, args.dtypes, args.texts, tokens=args.tokens, attention=args.attention
    )
    peaks = {dtype: product_peak(dtype) for dtype in args.dtypes}
    rows = []
    for case in tqdm(wanted, desc="benchmarks", leave=False, file=sys.stderr):
        rows.append(measure(case, steps=args.steps, peak=peaks[case.dtype]))
        print(json.dumps(rows[-1]), flush=True)
    print("\n".join(table(rows)), file=sys.stderr)
    if args.record:
        with storage.output_text("--record", args.record) as file:
            file.write(json.dumps(rows, indent=1) + "\n")
    if args.plot:
        draw(rows, Path(args.plot))
