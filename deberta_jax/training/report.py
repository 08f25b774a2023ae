"""Writes ``report.html``: one file that shows a run, made from the files in its directory."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deberta_jax import storage
from deberta_jax.training.plots import (
    confusion_plot,
    curves,
    histogram_plot,
    never_failing,
    save_figure,
    scatter_plot,
    write_curves,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { border: 1px solid #ccc; padding: .25rem .6rem; }
th { text-align: left; background: #f4f4f4; font-weight: 600; } img { max-width: 100%; } td.n { text-align: right; }
"""


def write_report(directory: storage.AnyPath, metric: str) -> None:
    """Writes the report, or logs why it cannot.

    It reads experiment.json, log.jsonl, result.json, sessions.jsonl and, if it exists, evaluation.json.

    Args:
      metric: the one that chose the best checkpoint.
    """
    path = directory / "report.html"
    with never_failing(path):
        storage.write_text(path, _page(directory, metric))


def complete_report(directory: storage.AnyPath, record: Mapping[str, Any]) -> None:
    """Writes the report of a run that has finished, and its curves, if the report is missing.

    Args:
      record: the resolved experiment.
    """
    report, plot = directory / "report.html", directory / "curves.png"
    if report.is_file():
        return
    with never_failing(report):
        metrics = storage.read_record(directory / "result.json", {"metrics": dict})["metrics"]
        metric = record["experiment"].get("metric") or next(iter(metrics))
        metric = metric if record["job"] == "Finetune" else "loss"
        if not plot.is_file():
            write_curves(plot, storage.read_json_lines(directory / "log.jsonl"), metric)
        write_report(directory, metric)


def _page(directory: storage.AnyPath, metric: str) -> str:
    experiment = storage.read_json(directory / "experiment.json")
    result = storage.read_json(directory / "result.json")
    entries = storage.read_json_lines(directory / "log.jsonl")
    sessions = storage.read_json_lines(directory / "sessions.jsonl")
    evaluation = directory / "evaluation.json"
    details = storage.read_json_object(evaluation, storage.LARGE) if evaluation.is_file() else {}
    parts = [
        _table("Best checkpoint", [("step", result["step"]), *result["metrics"].items()]),
        _figure("Curves", curves(entries, metric)),
        _evaluations(entries),
        *_details(details),
        _speed(entries, sessions),
        _table("Experiment", _flat(experiment["experiment"])),
        _table("Runtime", _flat(experiment["runtime"])),
        _table("Data (SHA-256)", experiment["data"].items()),
    ]
    title = html.escape(f"{experiment['job']}: {directory.name}")
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f"{page}<h1>{title}</h1>{''.join(parts)}</html>\n"


def _details(details: Mapping[str, Any]) -> list[str]:
    """Returns the sections for a task's details: a confusion matrix, a scatter plot, a histogram, examples."""
    parts = []
    if "confusion" in details:
        parts.append(_figure("Confusion matrix", confusion_plot(details["labels"], np.array(details["confusion"]))))
    if "confused" in details:
        parts.append(_rows("Most often confused", ("true", "predicted", "number"), details["confused"]))
    if "by_label" in details:
        rows = [(name, *values) for name, values in details["by_label"].items()]
        parts.append(_rows("By label", ("label", "precision", "recall", "f1", "number"), rows))
    if "scatter" in details:
        parts.append(_figure("Predicted against true", scatter_plot(*details["scatter"])))
    if "histogram" in details:
        parts.append(_figure(details["histogram"]["title"], histogram_plot(**details["histogram"])))
    if "wrong" in details:
        parts.append(_rows("Wrong and most certain", ("row", "true", "predicted", "score"), details["wrong"]))
    return parts


def _evaluations(entries: Sequence[Mapping[str, Any]]) -> str:
    evals = [entry for entry in entries if "eval" in entry]
    if not evals:
        return ""
    names = list(evals[0]["eval"])
    return _rows("Evaluations", ("step", *names), [(e["step"], *(e["eval"].get(n) for n in names)) for e in evals])


def _speed(entries: Sequence[Mapping[str, Any]], sessions: Sequence[Mapping[str, Any]]) -> str:
    steps = [entry for entry in entries if "loss" in entry]
    rows = []
    for name in ("tokens_per_second", "examples_per_second", "mfu", "padding", "peak_memory"):
        values = [entry[name] for entry in steps if name in entry]
        if values:
            rows.append((f"{name.replace('_', ' ')} (median of the log's lines)", float(np.median(values))))
    text = _table("Speed", rows)
    if sessions:
        names = list(sessions[0])
        text += _rows("Sessions", names, [[s.get(n) for n in names] for s in sessions])
    return text


def _figure(title: str, figure: "Figure") -> str:
    buffer = io.BytesIO()
    save_figure(figure, buffer, 110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<h2>{html.escape(title)}</h2><img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'


def _table(title: str, pairs: Any) -> str:
    rows = "".join(f"<tr><th>{html.escape(str(k))}</th>{_cell(v)}</tr>" for k, v in pairs)
    return f"<h2>{html.escape(title)}</h2><table>{rows}</table>"


def _rows(title: str, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in names)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return f"<h2>{html.escape(title)}</h2><table><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f'<td class="n">{value:.6g}</td>'
    kind = ' class="n"' if isinstance(value, int) and not isinstance(value, bool) else ""
    return f"<td{kind}>{html.escape(str(value))}</td>"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for name, value in tree.items():
        out += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return out
