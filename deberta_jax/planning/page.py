"""Writes a plan as one HTML page: the table, memory by cause, time by term, and the same work on more chips."""

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deberta_jax import storage
from deberta_jax.planning.report import ESTIMATE, Plan
from deberta_jax.planning.scaling import Point
from deberta_jax.training.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; } img { max-width: 100%; }
"""


def write_page(path: str, model: str, text: str, plan: Plan, scaling: Sequence[Point]) -> None:
    """Writes the page, whole or not at all.

    Args:
      model: the model's name, as the user gave it.
      text: the plan as the terminal shows it.
      scaling: points for more chips; without any the page has no such plot.
    """
    title = html.escape(f"Plan: {model}, {plan.request.job} on {plan.request.target.name}")
    figures = [("Memory of a chip", _plot_memory(plan))]
    if plan.seconds:
        figures.append(("Time of a step, at least", _plot_seconds(plan)))
    if scaling:
        figures.append(("The same work a chip on more chips", _plot_scaling(scaling)))
    body = "".join(f"<h2>{name}</h2>{_image(figure)}" for name, figure in figures)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><p>{html.escape(ESTIMATE)}</p><pre>{html.escape(text)}</pre>{body}</html>\n"
    )
    with storage.output_file("--html", path) as file:
        file.write(page.encode())


def _image(figure: "Figure") -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _plot_memory(plan: Plan) -> "Figure":
    figure = new_figure(8, 2.2)
    axes, left = figure.subplots(), 0.0
    for name, value in plan.memory.items():
        axes.barh([""], [value / 1e9], left=left, label=name)
        left += value / 1e9
    if plan.capacity:
        axes.axvline(plan.capacity / 1e9, color="black", linestyle="--", label="the chip's")
    axes.set_xlabel("GB")
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


def _plot_seconds(plan: Plan) -> "Figure":
    figure = new_figure(8, 2.2)
    axes = figure.subplots()
    terms = {name: 1e3 * seconds for name, seconds in plan.seconds.items()}
    axes.barh(list(terms), list(terms.values()))
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    return figure


def _plot_scaling(points: Sequence[Point]) -> "Figure":
    figure = new_figure(8, 2.6)
    curves = (("memory, GB", "memory", 1e9), ("collectives, GB", "collective", 1e9), ("step, ms", "step", 1e-3))
    chips = [p.chips for p in points]
    for axes, (name, field, unit) in zip(figure.subplots(1, 3), curves, strict=True):
        values = [getattr(p, field) / unit for p in points]
        axes.plot(chips, values, color="tab:blue")
        for p, value in zip(points, values, strict=True):
            axes.plot([p.chips], [value], "o", color="tab:blue", markerfacecolor="tab:blue" if p.compiled else "white")
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 1.2 * max(max(values), 1e-9))
        axes.set_xlabel("chips (hollow: extrapolated)")
        axes.set_title(name)
    return figure
