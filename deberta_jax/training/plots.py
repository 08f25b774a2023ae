"""Draws the curves of a run and the plots of its report. A plot or report that cannot be made never fails a run."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from deberta_jax import storage
from deberta_jax.errors import brief

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

_NAMED_LABELS, _COUNTED_LABELS = 60, 20


@contextmanager
def never_failing(path: storage.AnyPath) -> Iterator[None]:
    """Turns any error in its block, which writes ``path``, into a warning of one line."""
    try:
        yield
    except Exception as error:  # from a library that draws, or for a file that is damaged: the run itself is whole
        _log.warning("%s was not written (%s: %s)", path, type(error).__name__, brief(error, 300))


def new_figure(width: float | int, height: float | int) -> "Figure":
    """Returns an empty figure of this size in inches. Matplotlib is imported here because its import is slow."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", file: Any, dpi: int) -> None:
    """Writes a figure as PNG to an open file. Characters that the font lacks are shown as boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(file, format="png", dpi=dpi)


def plain(text: object, longest: int = 30) -> str:
    """Returns a name for a plot: printable, cut, and without mathematical notation, which matplotlib would parse."""
    return brief(text, longest).replace("$", r"\$")


def write_curves(path: storage.AnyPath, entries: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Writes the curves of the entries of a log as a PNG, or logs why it cannot."""
    with never_failing(path):
        figure = curves(entries, metric)
        with storage.writing(path) as file:
            save_figure(figure, file, 120)


def curves(entries: Sequence[Mapping[str, Any]], metric: str) -> "Figure":
    """Returns a plot of the training loss and, if there were evaluations, of their loss and ``metric``."""
    steps = [e for e in entries if "loss" in e]
    evals = [e for e in entries if "eval" in e]
    figure = new_figure(8, 4.5)
    left = figure.add_subplot()
    left.plot([e["step"] for e in steps], [e["loss"] for e in steps], color="tab:blue", label="training loss")
    left.plot([e["step"] for e in evals], _values(evals, "loss"), "o--", color="tab:cyan", label="evaluation loss")
    left.set_xlabel("step")
    left.set_ylabel("loss")
    lines = left.get_lines()
    if metric != "loss":
        right = left.twinx()
        drawn = right.plot([e["step"] for e in evals], _values(evals, metric), "s-", color="tab:orange")
        drawn[0].set_label(plain(metric))
        lines = [*lines, *drawn]
        right.set_ylabel(plain(metric))
    left.legend(lines, [str(line.get_label()) for line in lines], loc="best")
    left.grid(alpha=0.3)
    return figure


def _values(evals: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    values = (e["eval"].get(name) for e in evals)
    return [np.nan if value is None else value for value in values]


def confusion_plot(labels: Sequence[str], counts: np.ndarray) -> "Figure":
    """Returns a plot of a confusion matrix [true label, predicted label]; of many labels the names are left out."""
    size = min(10.0, 2.5 + 0.45 * len(labels))
    figure = new_figure(size + 1, size)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(labels) > _NAMED_LABELS:
        return figure
    names = [plain(label) for label in labels]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    if len(names) <= _COUNTED_LABELS:
        for i, j in np.ndindex(*counts.shape):
            axes.text(
                j, i, str(counts[i, j]), ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black"
            )
    return figure


def scatter_plot(truth: Sequence[float], guess: Sequence[float]) -> "Figure":
    """Returns a plot of predicted against true numbers."""
    figure = new_figure(5, 5)
    axes = figure.add_subplot()
    axes.plot(truth, guess, ".", alpha=0.4)
    axes.set_xlabel("true")
    axes.set_ylabel("predicted")
    return figure


def histogram_plot(title: str, values: Sequence[float], axis: str) -> "Figure":
    """Returns a histogram of values. The title is not drawn."""
    del title
    figure = new_figure(6, 3.5)
    axes = figure.add_subplot()
    axes.hist(values, bins=20)
    axes.set_xlabel(plain(axis))
    axes.set_ylabel("examples")
    return figure
