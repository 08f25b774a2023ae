"""The tables of docs/benchmarks/cpu.md: measured ratios, from what the benchmarks recorded here.

    python benchmarks/tables.py

It reads {attention,model,model_alone,peers,mixed_lengths,pipelines}.json in benchmarks/results. Each file is what the
benchmark of that name writes with ``--record``; model_alone.json is of ``model.py --alone``.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_SPEED = "real tokens a second over torch's"
RESULTS = Path(__file__).with_name("results")


def rows_of(name: str) -> list[dict[str, Any]]:
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text())["rows"] if file.is_file() else []


def markdown(header: Iterable[str], body: Iterable[Iterable[Any]]) -> str:
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *([str(cell) for cell in row] for row in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def model() -> str:
    """Over plain attention, and share of the peak, from a process without PyTorch; beside it, from one with both."""
    of = lambda rows: {(r["job"], r["shape"], r["dtype"]): r for r in rows}
    alone, beside = of(rows_of("model_alone")), of(rows_of("model"))
    number = lambda x: "" if x is None else f"{x:.2f}"
    return markdown(
        (
            "v3-base classifier",
            "shape",
            "dtype",
            "time over plain attention",
            "times as fast as PyTorch",
            "share of the matrix-product peak",
        ),
        (
            (
                *key,
                number(r["over plain attention"]),
                number(beside.get(key, {}).get("times as fast as torch")),
                number(r.get("share of peak", {}).get("ours")),
            )
            for key, r in alone.items()
        ),
    )


def attention() -> str:
    return markdown(
        ("one attention, 12 heads of 64", "shape", "time over the best plain", "v1's spans", "faster than the gather"),
        (
            (
                r["job"],
                r["shape"],
                f"{r['over the best plain']['blocked']:.2f}",
                f"{r['over the best plain']['v1 spans, auto']:.2f}",
                f"{r['faster than the gather']['blocked']:.2f}",
            )
            for r in rows_of("attention")
        ),
    )


def peers() -> str:
    rows = rows_of("peers")
    names = list(rows[0]["time over ours"]) if rows else []
    return markdown(
        ("v3-base encoder, forward, float32: times as fast as", *names),
        ((r["shape"], *(r["time over ours"].get(name, "-") for name in names)) for r in rows),
    )


def mixed_lengths() -> str:
    return markdown(
        ("texts of mixed lengths", "model", "real tokens a second over PyTorch's", "padding, ours", "PyTorch's"),
        (
            (r["job"], r["preset"], f"{r[_SPEED]:.2f}", f"{r['padding']['ours']:.2f}", f"{r['padding']['torch']:.2f}")
            for r in rows_of("mixed_lengths")
        ),
    )


def pipelines() -> str:
    file = json.loads((RESULTS / "pipelines.json").read_text())
    return markdown(
        ("pipeline", "time over transformers'", "its best batch size", "padding", "GFLOP/s"),
        (
            (
                name,
                f"{r['ratio']:.2f}",
                r["theirs"].split()[-1],
                f"{1 - r['tokens'] / r['token slots']:.2f}",
                r["GFLOP/s"],
            )
            for name, r in file["results"].items()
        ),
    )


def main() -> None:
    print("\n\n".join((model(), peers(), mixed_lengths(), attention(), pipelines())))


if __name__ == "__main__":
    main()
