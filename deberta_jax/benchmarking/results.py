"""Shows the figures of a benchmark: as a table, as a JSON file, as a plot."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.training.plots import new_figure

_PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def check_outputs(record: str, plot: str) -> None:
    """Checks, before anything is measured, that both files can be written; "" means that a file is not wanted.

    Raises:
      InputError: a path that cannot be written, or a plot in a format that is not known.
    """
    if plot and Path(plot).suffix not in _PLOT_SUFFIXES:
        raise InputError(f"--plot {plot}: give a name that ends in {', '.join(_PLOT_SUFFIXES)}")
    storage.check_output_file("--record", record or "-")
    storage.check_output_file("--plot", plot or "-")


def write_rows(rows: Sequence[dict[str, Any]], path: str) -> None:
    """Writes all rows as one JSON list."""
    with storage.output_text("--record", path) as file:
        file.write(json.dumps(rows, indent=1) + "\n")


def format_table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yields the lines of a table for a terminal."""
    yield f"{'model':24} {'job':8} {'shape':>9} {'dtype':9} {'texts':6} {'tokens/s':>12} {'mfu':>7} " + (
        f"{'of products':>11} {'memory':>9} {'compile':>8}"
    )
    percent = lambda x: "-" if x is None else f"{100 * x:.1f} %"
    for r in rows:
        first = f"{r['model']:24} {r['job']:8} {r['shape']:>9} {r['dtype']:9} {r['texts']:6}"
        if "error" in r:
            yield f"{first} {r['error']}"
            continue
        size = r["device_peak_bytes"] or r["program_bytes"]
        size = "-" if size is None else f"{size / 1e9:.2f} GB"
        yield (
            f"{first} {r['tokens_per_second']:12,.0f} {percent(r['mfu']):>7} {percent(r['share_of_products']):>11}"
            f" {size:>9} {r['compile_seconds']:6.1f} s"
        )


def plot(rows: Sequence[dict[str, Any]], path: str) -> None:
    """Draws tokens a second as one bar for each row; the file's suffix chooses the format."""
    done = [r for r in rows if "error" not in r]
    figure = new_figure(9, 1.2 + 0.32 * max(1, len(done)))
    axes = figure.add_subplot()
    names = [f"{r['model']} {r['job']} {r['shape']} {r['dtype']} {r['texts']}" for r in done]
    bars = axes.barh(names, [r["tokens_per_second"] for r in done], color="#4477aa")
    axes.bar_label(bars, [f"{100 * r['share_of_products']:.0f} %" for r in done], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("tokens of text a second; beside each bar, the share of what matrix products reach here")
    with storage.output_file("--plot", path) as file:
        figure.savefig(file, format=Path(path).suffix[1:], dpi=150)
