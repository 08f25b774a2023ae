"""Draws the figures of the documentation as SVG files in ``docs/images``.

    python scripts/figures.py            # writes the files
    python scripts/figures.py --check    # exit code 1 if a file is not what would be written

``cpu_speed.svg`` shows the ratios of ``benchmarks/results/peers.json``. The figures have a background of their own, so
that they can be read on light and dark pages, and name only fonts that a reader's system has.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
INK, SOFT, BACKGROUND = "#1f2430", "#5a6272", "#ffffff"
WORDS = ("the", "old", "dog", "barks")
CELL = 34


def document(width: int, height: int, title: str, parts: Iterator[str]) -> str:
    """Returns an SVG document with a white card behind the parts."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" font-family="{FONT}">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" rx="12" fill="{BACKGROUND}"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def text(x: float, y: float, words: str, size: int = 14, anchor: str = "start", color: str = INK, bold: bool = False):
    """Returns a line of text with its baseline at y."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{color}"{weight}>'
        f"{escape(words)}</text>"
    )


def square(x: float, y: float, color: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{CELL - 2}" height="{CELL - 2}" rx="4" fill="{color}"/>'


def shade(hue: int, amount: float) -> str:
    """Returns a color between pale (0) and strong (1)."""
    return f"hsl({hue}, 60%, {92 - 47 * amount:.0f}%)"


def content(query: int, key: int) -> float:
    """Returns a made-up score of two words; every pair has its own."""
    return (3 * query + 7 * key + 2 * query * key) % 10 / 9


def by_distance(word: int, distance: int) -> float:
    """Returns a made-up score of a word and a distance: strong near 0, and different for each word."""
    return max(0.0, 1 - 0.26 * abs(distance - (word % 2))) * (1 - 0.12 * word)


TERMS = (
    ("content to content", "query word and key word", 225, content),
    ("content to position", "query word and distance", 160, lambda q, k: by_distance(q, q - k)),
    ("position to content", "key word and distance", 28, lambda q, k: by_distance(k, q - k)),
)


def attention_parts() -> Iterator[str]:
    """Draws the three terms of a score, and how the second one is computed without a gather."""
    size = CELL * len(WORDS)
    yield text(440, 34, "A DeBERTa attention score is the sum of three products", 19, "middle", bold=True)
    left = 92
    for number, (name, what, hue, value) in enumerate(TERMS):
        x = left + number * (size + 84)
        if number:
            yield text(x - 50, 150, "+", 26, "middle", SOFT)
        for q, word in enumerate(WORDS):
            if not number:
                yield text(x - 10, 92 + q * CELL + 22, word, 13, "end", SOFT)
            for k in range(len(WORDS)):
                yield square(x + k * CELL, 92 + q * CELL, shade(hue, value(q, k)))
        for k, word in enumerate(WORDS):
            yield text(x + k * CELL + CELL / 2 - 1, 84, word, 11, "middle", SOFT)
        yield text(x + size / 2, 250, name, 15, "middle", bold=True)
        yield text(x + size / 2, 270, what, 13, "middle", SOFT)
    x = left + 3 * (size + 84)
    yield text(x - 56, 150, "→", 26, "middle", SOFT)
    yield text(x - 30, 142, "divide by", 14)
    yield text(x - 30, 162, "√(3 · head size),", 14)
    yield text(x - 30, 182, "then softmax", 14)
    yield text(left - 10, 84, "query", 12, "end", SOFT)
    yield text(left + size / 2, 62, "key", 12, "middle", SOFT)
    yield from _shift_parts(312)


def _shift_parts(top: int) -> Iterator[str]:
    """Draws the product with the table of distances, and the rows moved so that keys stand in columns."""
    hue, count = 160, len(WORDS)
    yield f'<line x1="40" y1="{top}" x2="840" y2="{top}" stroke="#dfe3ea"/>'
    yield text(
        440,
        top + 34,
        "The position terms without a gather: one product, then a shift of the rows",
        17,
        "middle",
        bold=True,
    )
    y, x = top + 82, 112
    for column in range(2 * count - 1):
        yield text(
            x + column * CELL + CELL / 2 - 1, y - 8, f"{count - 1 - column:+d}".replace("+0", "0"), 11, "middle", SOFT
        )
    for q, word in enumerate(WORDS):
        yield text(x - 10, y + q * CELL + 22, word, 13, "end", SOFT)
        for column in range(2 * count - 1):
            distance = count - 1 - column
            used = 0 <= q - distance < count
            yield square(x + column * CELL, y + q * CELL, shade(hue, by_distance(q, distance)) if used else "#eef0f4")
    width = CELL * (2 * count - 1)
    yield text(x + width / 2, y + 4 * CELL + 22, "query words × table of distances [T, 2T-1]", 14, "middle", bold=True)
    yield text(
        x + width / 2, y + 4 * CELL + 42, "a matrix product; column = query position - key position", 13, "middle", SOFT
    )
    yield text(x + width + 80, y + 60, "of row i keep", 13, "middle", SOFT)
    yield text(x + width + 80, y + 84, "→", 26, "middle", SOFT)
    yield text(x + width + 80, y + 104, "T columns from T-1-i", 13, "middle", SOFT)
    x += width + 164
    for q in range(count):
        for k, word in enumerate(WORDS):
            yield square(x + k * CELL, y + q * CELL, shade(hue, by_distance(q, q - k)))
            if not q:
                yield text(x + k * CELL + CELL / 2 - 1, y - 8, word, 11, "middle", SOFT)
    yield text(x + 2 * CELL, y + 4 * CELL + 22, "content to position [T, T]", 14, "middle", bold=True)
    yield text(x + 2 * CELL, y + 4 * CELL + 42, "column = key", 13, "middle", SOFT)


PEERS = {
    "keras": "KerasHub, JAX backend",
    "torch": "transformers, PyTorch eager",
    "compile": "transformers, torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}


def speed_parts(row: dict) -> Iterator[str]:
    """Draws the time of each peer over ours, as recorded by ``benchmarks/peers.py``."""
    yield text(24, 34, "Time of a forward pass, relative to deberta_jax", 17, bold=True)
    shape = row["shape"].replace("x", " texts of ")
    yield text(24, 58, f"DeBERTa-v3-base on 2 CPU cores, {shape} tokens, {row['dtype']};", 14, color=SOFT)
    yield text(24, 78, "shorter is faster; measured", 14, color=SOFT)
    peers = sorted(((PEERS[name], ratio) for name, ratio in row["time over ours"].items()), key=lambda bar: bar[1])
    for number, (name, ratio) in enumerate([("deberta_jax", 1.0), *peers]):
        y, color = 98 + 34 * number, "#b9c0d4" if number else "#3f51b5"
        yield text(230, y + 17, name, 14, "end", bold=not number)
        yield f'<rect x="242" y="{y}" width="{130 * ratio:.0f}" height="24" rx="4" fill="{color}"/>'
        yield text(242 + 130 * ratio + 10, y + 17, f"{ratio:.2f}", 14, bold=not number)


def figures() -> dict[str, str]:
    """Returns the content of every figure by file name."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "peers.json").read_text(encoding="utf-8"))["rows"]
    return {
        "disentangled_attention.svg": document(
            880, 590, "The three terms of disentangled attention", attention_parts()
        ),
        "cpu_speed.svg": document(560, 312, "Time of a forward pass relative to deberta_jax", speed_parts(rows[0])),
    }


def main(arguments: list[str]) -> int:
    """Writes the figures, or compares them with the files. Returns the exit code."""
    stale = 0
    for name, drawn in figures().items():
        path = IMAGES / name
        if arguments == ["--check"]:
            if not path.is_file() or path.read_text(encoding="utf-8") != drawn:
                print(f"{path.relative_to(ROOT)}: not what `python scripts/figures.py` writes")
                stale = 1
        else:
            IMAGES.mkdir(parents=True, exist_ok=True)
            path.write_text(drawn, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
