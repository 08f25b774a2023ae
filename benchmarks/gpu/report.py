"""The kit's results as one JSON file and as tables."""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Rows = Mapping[str, Row]


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Writes the results so that the file is always whole, the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
            file.write("\n")
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def file_name(card: str) -> str:
    """Returns ``gpu_CARD.json`` with the card's name in lower case and hyphens."""
    return f"gpu_{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.json"


def bad(row: Row) -> bool:
    """True for a result that is wrong, or that was not reached for another reason than time or a missing package."""
    return row["status"] not in ("ok", "skipped")


def table(name: str, part: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of a part's table, and a line for everything that was not measured."""
    rows: Rows = part["rows"]
    yield f"== {name}: {part['seconds']:.0f} s{', ' + part['reason'].splitlines()[0] if part['reason'] else ''}"
    yield from _TABLES[name](rows, results)
    yield from _not_measured(rows)


def _not_measured(rows: Rows) -> Iterator[str]:
    """Yields one line for each status and reason, with the names that it holds for."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for name, row in rows.items():
        if "reason" in row:
            by_reason.setdefault((row["status"], row["reason"]), []).append(name)
    for (status, reason), names in by_reason.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield f"   {status}: {'; '.join(names[:3])}{more}: {reason[:200]}"


def _machine(rows: Rows, results: Mapping[str, Any]) -> Iterator[str]:
    for name, row in rows.items():
        facts = [f"{key} {_short(value)}" for key, value in row.items() if key not in ("status", "seconds")]
        if row["status"] == "ok":
            yield f"   {name}: {'; '.join(facts)}"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _grid(
    first: str, lines: Sequence[str], columns: Sequence[str], cells: Mapping[tuple[str, str], str]
) -> Iterator[str]:
    """Yields a table with a column for each of ``columns``; nothing where there are no lines."""
    if not lines:
        return
    widths = [max([len(column), *(len(cells.get((line, column), "-")) for line in lines)]) for column in columns]
    head = max([len(first), *map(len, lines)])
    yield f"   {first:{head}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True))
    for line in lines:
        values = (f"{cells.get((line, c), '-'):>{w}}" for c, w in zip(columns, widths, strict=True))
        yield f"   {line:{head}}  " + "  ".join(values)


def _unique(names: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _correctness(rows: Rows, results: Mapping[str, Any]) -> Iterator[str]:
    """Yields, for each setting, the largest error of each implementation, the definition's own first."""
    compared = [row for row in rows.values() if "errors" in row]
    cells = {}
    for row in compared:
        errors = [float("inf") if error is None else error for error in row["errors"].values()]
        verdict = "" if row["status"] == "ok" else " FAILED"
        cells[row["setting"], row["implementation"]] = f"{max(errors):.1e}{verdict}"
    columns = _unique(row["implementation"] for row in compared)
    yield from _grid("largest error, of context and gradients", _unique(r["setting"] for r in compared), columns, cells)
    for row in rows.values():
        if "chosen" in row:
            yield f"   auto in {row['dtype']}: {row['chosen']}; {' '.join(row['log'])}"
        if row["status"] == "failed":
            wrong = ", ".join(f"{n} {e}" for n, e in row["errors"].items() if e is None or e > row["limits"][n])
            yield f"   FAILED: {row['implementation']}, {row['setting']}: {wrong}; limits {_short(row['limits'])}"


def _times(rows: Rows, results: Mapping[str, Any]) -> Iterator[str]:
    """Yields milliseconds and, in brackets, the ratio to the same library's plain attention."""
    timed = [row for row in rows.values() if "milliseconds" in row]
    column = lambda row: f"{row['shape']} {row['job'].replace('forward+backward', 'both')}"
    cells = {}
    for row in timed:
        error = f" error {row['error']}" if row["status"] == "failed" else ""
        cells[row["name"], column(row)] = f"{row['milliseconds']:g} ({row['over plain']:g}){error}"
    lines = _unique(row["name"] for row in timed)
    yield from _grid("ms (over plain)", lines, _unique(map(column, timed)), cells)
    if timed:
        yield f"   a call that computes nothing: {timed[-1]['dispatch milliseconds']:g} ms"


def _models(rows: Rows, results: Mapping[str, Any]) -> Iterator[str]:
    """Yields milliseconds, tokens a second, memory, and the ratio to transformers where it is known."""
    timed = {name: row for name, row in rows.items() if "milliseconds" in row}
    torch_rows = results["parts"].get("model-torch", {}).get("rows", {})
    cells: dict[tuple[str, str], str] = {}
    for name, row in timed.items():
        gigabytes = lambda size: "-" if size is None else f"{size / 1e9:.2f}"
        cells |= {
            (name, "ms"): f"{row['milliseconds']:g}",
            (name, "tokens/s"): f"{row['tokens_per_second']:,.0f}",
            (name, "padding"): f"{row['padding']:.2f}",
            (name, "peak GB"): gigabytes(row["device_peak_bytes"]),
            (name, "program GB"): gigabytes(row.get("program_bytes")),
        }
        theirs = torch_rows.get(row["name"], {}).get("tokens_per_second")
        if theirs and rows is not torch_rows:
            cells[name, "times transformers"] = f"{row['tokens_per_second'] / theirs:.2f}"
    columns = ["ms", "tokens/s", "padding", "peak GB", "program GB", "times transformers"]
    yield from _grid("", list(timed), columns, cells)


_TABLES = {
    "machine": _machine,
    "correctness": _correctness,
    "attention-jax": _times,
    "attention-torch": _times,
    "model-jax": _models,
    "model-torch": _models,
}
